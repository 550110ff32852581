// The mixture's loss, gradients and draws over threads.
#pragma once

#include "job.h"

namespace wm {

// Does a task for all rows of `heads`, on at most `threads` threads; each row alone, so that their number changes no bit.
void run_heads(const Level& level, HeadTask task, const Heads& heads, int threads);

}  // namespace wm

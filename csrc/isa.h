// The instruction-set levels this binary holds, which of them the processor can run, and the one to take.
#pragma once

#include <string>
#include <vector>

#include "job.h"

namespace wm {

// Levels that this processor runs, slowest first. `scalar` is always there.
std::vector<const Level*> available_levels();

// Levels of this kind of processor that the compiler could not make.
std::vector<std::string> levels_not_compiled();

// Whether this processor has matrix tiles (AMX). The level `amx` needs the operating system's leave too: it is asked once
// a process, when levels are first listed or chosen, and a refusal leaves the level out.
bool has_amx();

// The level called `name`, or the best one for "auto" (then the environment variable WM_ENGINE_ISA decides, if set).
// std::invalid_argument if the name is unknown or the processor cannot run it.
const Level& choose_level(const std::string& name);

}  // namespace wm

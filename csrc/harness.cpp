// Dreams of many shapes without Python, for the sanitizers: `cmake --build BUILD --target harness` in a build configured
// with -DWM_SANITIZE=address,undefined or -DWM_SANITIZE=thread, then run it. Exit status 1 where one thread and several
// disagree, or where a rollout was left out.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "dream.h"
#include "isa.h"

namespace {

std::mt19937 generator(1);

int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint32_t>(n)); }

std::vector<float> normal(int64_t n, float spread) {
  std::normal_distribution<float> distribution(0.0f, spread);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = distribution(generator);
  return values;
}

// One random model and plan on one level; false if its results are wrong.
bool dream(const wm::Level& level, wm::Precision precision) {
  wm::Weights w{};
  w.latent = 1 + below(40);
  w.action = 1 + below(5);
  w.hidden = 1 + below(50);
  w.mixtures = 1 + below(18);
  w.per_dim = below(2) == 1;
  const int64_t Z = w.latent, A = w.action, H = w.hidden;
  const float spread = 1.0f / std::sqrt(static_cast<float>(H));
  const auto ih = normal(4 * H * (Z + A), spread), hh = normal(4 * H * H, spread), bi = normal(4 * H, spread),
             bh = normal(4 * H, spread), hw = normal(w.head_rows() * H, spread), hb = normal(w.head_rows(), spread);
  w.weight_ih = ih.data();
  w.weight_hh = hh.data();
  w.bias_ih = bi.data();
  w.bias_hh = bh.data();
  w.head_weight = hw.data();
  w.head_bias = hb.data();
  const char* const features[] = {"z", "zh", "zhc"};
  const char* const words[] = {"tanh", "sigmoid", "tanh01", "relu_tanh", "identity"};
  std::vector<std::string> squash{"argmax"};
  if (below(4) > 0) squash.assign(static_cast<size_t>(A), words[below(5)]);
  const wm::Engine engine(w, features[below(3)], squash, below(2) * below(20), precision, level);

  wm::Plan plan{};
  plan.candidates = 1 + below(40);
  plan.episodes = 1 + below(4);
  plan.steps = 1 + below(12);
  plan.starts = 1 + below(3);
  std::vector<float> params = normal(plan.candidates * engine.params_size(), 0.3f);
  if (below(3) == 0) params[params.size() / 2] = std::numeric_limits<float>::quiet_NaN();
  const auto z = normal(plan.starts * Z, 1.0f), h = normal(plan.starts * H, 0.5f), c = normal(plan.starts * H, 0.5f);
  plan.params = params.data();
  plan.z = z.data();
  if (below(2) == 1) plan.h = h.data();
  if (below(2) == 1) plan.c = c.data();
  plan.temperature = static_cast<float>(below(3)) * 0.5f;
  plan.sample_done = below(2) == 1;
  plan.survival = below(2) == 1;

  const size_t lanes = static_cast<size_t>(plan.candidates * plan.episodes), steps = static_cast<size_t>(plan.steps);
  std::vector<float> zs(steps * lanes * static_cast<size_t>(Z)), actions(steps * lanes * static_cast<size_t>(A)),
      rewards(steps * lanes);
  plan.zs = zs.data();
  plan.actions = actions.data();
  plan.rewards = rewards.data();
  std::vector<float> first;
  for (int threads : {1, 4}) {
    std::vector<float> returns(lanes);
    std::vector<int32_t> lengths(lanes, -1);
    plan.returns = returns.data();
    plan.lengths = lengths.data();
    if (!engine.rollout(plan, threads, [] { return false; })) return false;
    for (int32_t length : lengths)
      if (length < 1 || length > plan.steps) return false;
    if (first.empty()) first = returns;
    if (std::memcmp(first.data(), returns.data(), lanes * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace

int main() {
  int wrong = 0, dreams = 0;
  for (const wm::Level* level : wm::available_levels())
    for (wm::Precision precision : {wm::Precision::fp32, wm::Precision::bf16, wm::Precision::int8})
      for (int i = 0; i < 40; ++i, ++dreams)
        if (!dream(*level, precision)) {
          std::fprintf(stderr, "wrong: %s, precision %d, dream %d\n", level->name, static_cast<int>(precision), i);
          ++wrong;
        }
  std::printf("%d dreams, %d wrong\n", dreams, wrong);
  return wrong == 0 ? 0 : 1;
}

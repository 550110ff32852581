// Dreams, and losses and draws of the mixture, of many shapes without Python: .ci/sanitize builds the target `harness`
// with -DWM_SANITIZE=address,undefined and with -DWM_SANITIZE=thread, .ci/arm for another processor, and both run it.
// Exit status 1 where one thread and several disagree, where a rollout was left out, where a step allocates memory, or
// where a level's random words, elementary functions or the first steps of its dreams are not what they should be.
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "dream.h"
#include "isa.h"
#include "mdn_ops.h"

namespace {

std::atomic<int64_t> allocations{0}, allocated{0};

void* counted(void* memory, size_t bytes) {
  if (memory == nullptr) throw std::bad_alloc();
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  return memory;
}

}  // namespace

// Not inlined: where GCC inlines one of new and delete alone, it takes malloc() and delete, or new and free(), for a
// mismatch.
#define WM_APART __attribute__((noinline))
WM_APART void* operator new(size_t bytes) { return counted(std::malloc(bytes), bytes); }
WM_APART void* operator new(size_t bytes, std::align_val_t align) {
  const size_t line = static_cast<size_t>(align);
  return counted(std::aligned_alloc(line, (bytes + line - 1) / line * line), bytes);
}
WM_APART void operator delete(void* memory) noexcept { std::free(memory); }
WM_APART void operator delete(void* memory, size_t) noexcept { std::free(memory); }
WM_APART void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
WM_APART void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

std::mt19937 generator(1);

int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint32_t>(n)); }

std::vector<float> normal(int64_t n, float spread) {
  std::normal_distribution<float> distribution(0.0f, spread);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = distribution(generator);
  return values;
}

// Whether two levels' numbers of the same first steps agree. Roundings (fused or not, sums in another order) parted none
// of them by more than 5e-6 of 1 + |b|, or where they tipped an element of h over to the next of bf16 or int8, 2e-3; a
// wrong lane parts them by tenths. Where b is NaN so must a be, but for int8, whose integers cannot be: a rollout that
// failed is marked, and its last z is any.
bool agree(const std::vector<float>& a, const std::vector<float>& b, wm::Precision precision) {
  const float most = precision == wm::Precision::fp32 ? 1e-4f : 1e-2f;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool same = std::isnan(b[i]) ? std::isnan(a[i]) || precision == wm::Precision::int8
                                       : std::fabs(a[i] - b[i]) <= most * (1.0f + std::fabs(b[i]));
    if (!same) return false;
  }
  return true;
}

// Two steps' z, actions and rewards.
std::vector<float> two_steps(const wm::Engine& engine, wm::Plan plan) {
  const int64_t lanes = plan.candidates * plan.episodes, Z = engine.model().latent, A = engine.model().action;
  std::vector<float> out(static_cast<size_t>(2 * lanes * (Z + A + 1))), returns(static_cast<size_t>(lanes));
  std::vector<int32_t> lengths(static_cast<size_t>(lanes));
  plan.steps = 2;
  plan.zs = out.data();
  plan.actions = plan.zs + 2 * lanes * Z;
  plan.rewards = plan.actions + 2 * lanes * A;
  plan.returns = returns.data();
  plan.lengths = lengths.data();
  engine.rollout(plan, 1, [] { return false; });
  return out;
}

// One random model and plan on one level; false if its results are wrong.
bool dream(const wm::Level& level, wm::Precision precision) {
  wm::Weights w{};
  w.latent = 1 + below(40);
  w.action = 1 + below(5);
  w.hidden = 1 + below(below(8) == 0 ? 200 : 50);  // beyond 64: more than one tile of int8
  w.mixtures = 1 + below(18);
  w.per_dim = below(2) == 1;
  w.residual = below(3) == 0;
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
  const char* const feature = features[below(3)];
  const int64_t units = below(2) * below(20);
  const wm::Engine engine(w, feature, squash, units, precision, level);

  wm::Plan plan{};
  plan.candidates = 1 + below(40);
  plan.episodes = 1 + below(4);
  plan.steps = 1 + below(12);
  plan.starts = 1 + below(3);
  std::vector<float> params = normal(plan.candidates * engine.params_size(), 0.3f);
  if (below(3) == 0) params[params.size() / 2] = std::numeric_limits<float>::quiet_NaN();
  const auto z = normal(plan.starts * Z, 1.0f), h = normal(plan.starts * H, 0.5f), c = normal(plan.starts * H, 0.5f);
  const std::vector<float> given = normal(plan.candidates * (plan.steps + 1) * A, 1.0f);  // two_steps takes two
  plan.params = params.data();
  if (below(3) == 0) plan.given = given.data();
  plan.first_episode = below(5);
  plan.episode_stride = 1 + below(3);
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
    if (!engine.rollout(plan, threads, [] { return false; }).complete) return false;
    for (int32_t length : lengths)
      if (length < 1 || length > plan.steps) return false;
    if (first.empty()) first = returns;
    if (std::memcmp(first.data(), returns.data(), lanes * sizeof(float)) != 0) return false;
  }
  const wm::Engine plain(w, feature, squash, units, precision, wm::level_scalar);
  if (!agree(two_steps(engine, plan), two_steps(plain, plan), precision)) return false;
  // One thread's call allocates as often for all steps as for one, and little beside what it says.
  constexpr int64_t kBooks = 4096;
  std::vector<float> returns(lanes);
  std::vector<int32_t> lengths(lanes);
  plan.returns = returns.data();
  plan.lengths = lengths.data();
  int64_t times[2];
  for (int i = 0; i < 2; ++i, plan.steps = 1) {
    const int64_t before = allocations, bytes = allocated;
    const wm::Work work = engine.rollout(plan, 1, [] { return false; });
    times[i] = allocations - before;
    if (allocated - bytes > work.scratch_bytes + kBooks) return false;
  }
  return times[0] == times[1];
}

// Philox4x32-10's published words for one counter (Random123's kat_vectors), and the scalar level's for random ones.
bool words(const wm::Level& level) {
  const int64_t n = 16 * (1 + below(8));
  std::vector<uint32_t> counters(static_cast<size_t>(4 * n)), out(counters.size()), plain(counters.size());
  for (uint32_t& word : counters) word = static_cast<uint32_t>(generator());
  const uint32_t counter[] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  const uint32_t known[] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  const size_t at = static_cast<size_t>(below(n));
  for (size_t i = 0; i < 4; ++i) counters[i * static_cast<size_t>(n) + at] = counter[i];
  level.philox(counters.data(), 0xa4093822, 0x299f31d0, out.data(), n);
  wm::level_scalar.philox(counters.data(), 0xa4093822, 0x299f31d0, plain.data(), n);
  for (size_t i = 0; i < 4; ++i)
    if (out[i * static_cast<size_t>(n) + at] != known[i]) return false;
  return out == plain;
}

// The largest errors that maths.h states, against the C library's doubles.
bool functions(const wm::Level& level) {
  constexpr double kTurn = 6.283185307179586;
  struct Case {
    wm::Function function;
    double (*exact)(double);
    double low, high, ulps;
    bool of_one;  // ulps of 1, not of the result
  };
  const Case cases[] = {
      {wm::Function::exp, [](double x) { return std::exp(x); }, -87.3, 88.3, 1.1, false},
      {wm::Function::log, [](double x) { return std::log(x); }, 1e-7, 0.9999999, 1.0, false},
      {wm::Function::tanh, [](double x) { return std::tanh(x); }, -10.0, 10.0, 6.0, false},
      {wm::Function::sigmoid, [](double x) { return 1.0 / (1.0 + std::exp(-x)); }, -86.9, 86.9, 2.5, false},
      {wm::Function::cos_turn, [](double t) { return std::cos(kTurn * t); }, 0.0, 1.0, 1.0, true},
      {wm::Function::sin_turn, [](double t) { return std::sin(kTurn * t); }, 0.0, 1.0, 1.0, true},
  };
  std::vector<float> x(5003), y(x.size());
  for (const Case& c : cases) {
    for (float& value : x) value = static_cast<float>(std::uniform_real_distribution<double>(c.low, c.high)(generator));
    level.map(c.function, x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = c.exact(static_cast<double>(x[i]));
      const float size = c.of_one ? 1.0f : std::fabs(static_cast<float>(want));
      const double ulp = static_cast<double>(std::nextafter(size, FLT_MAX)) - static_cast<double>(size);
      if (!(std::fabs(static_cast<double>(y[i]) - want) <= c.ulps * ulp)) return false;
    }
  }
  return true;
}

// Random heads on one level, loss, gradients and draws; false if one thread and several disagree.
bool mixture(const wm::Level& level) {
  wm::Heads heads{};
  const int64_t B = heads.rows = 1 + below(3000), Z = heads.latent = 1 + below(40), K = heads.mixtures = 1 + below(18);
  heads.per_dim = below(2) == 1;
  const int64_t C = heads.per_dim ? Z : 1;
  const auto logits = normal(B * C * K, 2.0f), means = normal(B * Z * K, 1.0f), log_stds = normal(B * Z * K, 4.0f),
             target = normal(B * Z, 1.0f), grad = normal(B, 1.0f);
  heads.logits = {logits.data(), C * K, K, 1};
  heads.means = {means.data(), Z * K, 1, Z};
  heads.log_stds = {log_stds.data(), Z * K, K, 1};
  heads.target = {target.data(), Z, 1, 0};
  heads.grad = {grad.data(), 1, 0, 0};
  std::vector<int64_t> counters(static_cast<size_t>(3 * B));
  for (int64_t& word : counters) word = below(1 << 30);
  heads.counters = counters.data();
  heads.temperature = static_cast<float>(below(3)) * 0.5f;

  const size_t sizes[] = {static_cast<size_t>(B), logits.size(), means.size(), means.size(), target.size(),
                          target.size()};
  std::vector<std::vector<float>> first;
  for (int threads : {1, 4}) {
    std::vector<std::vector<float>> out;
    for (size_t size : sizes) out.emplace_back(size, std::numeric_limits<float>::quiet_NaN());
    heads.nll = out[0].data();
    heads.to_logits = out[1].data();
    heads.to_means = out[2].data();
    heads.to_log_stds = out[3].data();
    heads.to_target = out[4].data();
    heads.z = out[5].data();
    for (wm::HeadTask task : {wm::HeadTask::nll, wm::HeadTask::gradients, wm::HeadTask::draw})
      wm::run_heads(level, task, heads, threads);
    if (first.empty()) first = out;
    if (first != out) return false;  // a NaN, of an output that was not written, is unequal to itself
  }
  return true;
}

}  // namespace

int main() {
  int wrong = 0, tried = 0;
  const auto count = [&](bool right, const wm::Level* level, const char* what, int i) {
    ++tried;
    if (right) return;
    std::fprintf(stderr, "wrong: %s, %s %d\n", level->name, what, i);
    ++wrong;
  };
  for (const wm::Level* level : wm::available_levels()) {
    for (int i = 0; i < 40; ++i) count(dream(*level, wm::Precision::fp32), level, "fp32 dream", i);
    for (int i = 0; i < 40; ++i) count(dream(*level, wm::Precision::bf16), level, "bf16 dream", i);
    for (int i = 0; i < 40; ++i) count(dream(*level, wm::Precision::int8), level, "int8 dream", i);
    for (int i = 0; i < 10; ++i) count(mixture(*level), level, "mixture", i);
    for (int i = 0; i < 4; ++i) count(words(*level), level, "random words", i);
    for (int i = 0; i < 4; ++i) count(functions(*level), level, "elementary functions", i);
  }
  std::printf("%d tried, %d wrong\n", tried, wrong);
  return wrong == 0 ? 0 : 1;
}

// What the driver (dream.cpp) and the levels (level_*.cpp) say to each other: plain records and function pointers.
//
// No std:: templates and no inline functions here: a level is compiled with wider instructions than the processor may
// have, and whatever it shares with other translation units could be linked in its wide form.
//
// Letters: P candidates, E episodes, B = P*E lanes, T steps, Z latent, H hidden, K mixtures, A actions.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace wm {

enum class Element : int { f32, bf16, int8 };
enum class Squash : uint8_t { tanh, sigmoid, tanh01, relu_tanh, identity };

// Rows of a weight matrix as columns of packed vectors, in groups of four vectors (the last group may have fewer).
// A group holds [depth][vectors][width] floats, [depth/2][vectors][width][2] bf16 or [depth/4][vectors][width][4] int8,
// zeros behind the depth up to the level's `depth_steps`.
struct Matrix {
  const void* weights;
  const float* bias;      // [vectors * width], or null
  const float* scale;     // [vectors * width], with int8 values only: the size of one unit of the weight
  const int32_t* offset;  // [vectors * width], with int8 elements only: -128 times the sum of a column's weights
  int64_t vectors;
};

// Weight rows two by two, each packed along its depth (dots.h): [pairs][1 + depth_vectors][2] vectors of as many bytes
// each. The first two are what the sums start with: in lane 0 the bias, or what corrects int8 sums of shifted elements,
// or 0 where quantised rows are kept as floats; 0 in the other lanes.
struct Pairs {
  const void* weights;
  int64_t count, depth_vectors;
};

struct Model {
  int64_t latent, action, hidden, mixtures;
  bool per_dim;
  bool residual;         // the mixture is of z' - z, not of z'
  bool quantised;        // int8 weights for everything that multiplies h, whatever the element they are kept in
  bool rounded;          // operands rounded to bf16 (and int8) but kept as floats: levels without the dot products
  Element input_element, hidden_element;
  int64_t unit_blocks;   // ceil(H / width); one block's four gates are four vectors
  int64_t latent_blocks; // ceil(Z / width)
  Matrix gates_input;    // [Z+A] deep, four vectors a unit block in the order i, f, g, o
  Matrix gates_hidden;   // [H] deep; its bias is bias_ih + bias_hh
  Pairs reward_end;      // [H] deep, always f32: reward and end, and for `shared` the K logits two by two
  // per_dim: one matrix of K vectors of logits a latent block.
  // shared: K matrices, one a component, of two vectors a latent block (mean, log deviation).
  const Matrix* mixture;
  // per_dim: pair d K + k is component k of dimension d (mean, log deviation). Quantised rows are scaled, and their bias
  // added, when they have been summed: [latent_blocks][K][2][width] each, null otherwise.
  Pairs components;
  const float *component_scale, *component_bias;
};

struct Controller {
  int64_t features;      // length of the feature row
  bool use_h, use_c;
  int64_t hidden_units;  // 0: linear
  int64_t size;          // floats a candidate
  bool argmax;
  const Squash* squash;  // [A] unless argmax
};

struct Plan {
  int64_t candidates, episodes, steps, starts;
  const float *params;             // [P, D], or null
  const float *given;              // [P, T, A], actions in the controllers' place, or null
  const float *z, *h, *c;          // [N, Z], [N, H] or null, [N, H] or null
  float temperature;
  uint32_t key0, key1;
  bool survival, sample_done, common_random_numbers;
  uint32_t first_candidate;
  int64_t first_episode, episode_stride;  // episode e of the plan is number first + e stride of the whole
  float* returns;                  // [B]
  int32_t* lengths;                // [B]
  float *zs, *actions, *rewards;   // [T, B, Z], [T, B, A], [T, B], or all null
};

struct Job {
  Model model;
  Controller controller;
  Plan plan;
};

// The phases of a tile's step, timed in builds with WM_PROFILE.
enum class Phase : int { controller, gates, reward_and_end, mixture, noise, draw, ends };
constexpr int kPhases = 7;

// Calls back into the driver, from the loop over steps.
struct Hooks {
  void* context;
  int64_t (*next_lane)(void* context);  // the next lane to dream, or -1
  bool (*stopped)(void* context);       // asked once a step of the tile
  // Told at the end how many rows were computed in all steps: a tile of rows filled in part counts as a full one.
  void (*worked)(void* context, int64_t row_steps);
#if defined(WM_PROFILE)
  void (*lap)(void* context, Phase phase, int64_t rows, int64_t began, int64_t ended);  // nanoseconds
#endif
};

// A float tensor [B, C or Z, K] as it lies in memory: its strides in floats, any of which may be 0 or negative.
struct View {
  const float* data;
  int64_t row, dim, component;
};

// B heads apart from any dream, for the mixture's loss, its gradients and its draws. Outputs are contiguous.
struct Heads {
  int64_t rows, latent, mixtures;
  bool per_dim;
  View logits;           // [B, 1 or Z, K]
  View means, log_stds;  // [B, Z, K]
  View target;           // [B, Z]
  View grad;             // [B], of the loss
  float* nll;            // [B]
  float *to_logits, *to_means, *to_log_stds, *to_target;  // the gradients, of the inputs' shapes
  const int64_t* counters;  // [B, 3]: step, episode, candidate of a draw
  uint32_t key0, key1;
  float temperature;
  float* z;              // [B, Z], drawn
};
enum class HeadTask : int { nll, gradients, draw };

enum class Function : int { exp, log, tanh, sigmoid, cos_turn, sin_turn };

// As peak.h has them: multiply-adds on registers alone, and how many flops they were.
typedef int64_t (*Peak)(int64_t rounds, float* sink);

struct Level {
  const char* name;
  int64_t width;  // floats a vector
  int64_t rows;   // rows of a register tile
  int64_t depth_steps;  // a bf16 or int8 matrix is padded to a multiple of so many dot products' depths (2 and 4)
  bool dot_bf16, dot_int8;
  Peak peak_fp32, peak_bf16, peak_int8;  // null where the level has no instruction for it
  size_t (*scratch_bytes)(const Job& job, int64_t rows);
  void (*rollout)(const Job& job, const Hooks& hooks, void* scratch, int64_t rows);
  void (*map)(Function function, const float* x, float* y, int64_t n);
  void (*philox)(const uint32_t* counters, uint32_t key0, uint32_t key1, uint32_t* words, int64_t n);
  size_t (*heads_scratch)(const Heads& heads);
  void (*heads)(HeadTask task, const Heads& heads, void* scratch, int64_t first, int64_t end);  // rows first .. end - 1
};

// Those that the compiler could make are defined (CMakeLists.txt).
extern const Level level_scalar, level_avx2, level_avx512, level_avx512_vnni, level_avx512_bf16, level_amx, level_neon;

}  // namespace wm

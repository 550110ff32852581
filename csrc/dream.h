// A dream engine: M's weights packed once for one level and precision, and rollouts over threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
#include "job.h"

namespace wm {

enum class Precision { fp32, bf16, int8 };

// M as torch keeps it, all row-major float32. Letters: Z latent, A actions, H hidden, K mixtures.
struct Weights {
  int64_t latent, action, hidden, mixtures;
  bool per_dim;
  bool residual;             // the mixture is of z' - z, not of z'
  const float* weight_ih;    // [4H, Z+A], gates i, f, g, o
  const float* weight_hh;    // [4H, H]
  const float* bias_ih;      // [4H]
  const float* bias_hh;      // [4H]
  const float* head_weight;  // [N, H]
  const float* head_bias;    // [N]
  int64_t head_rows() const {
    return per_dim ? 3 * latent * mixtures + 2 : mixtures * (2 * latent + 1) + 2;
  }
};

// What a call did, and with how much memory beside the packed weights and its results.
struct Work {
  bool complete;           // false if `interrupted` said so; the results are then incomplete
  int64_t row_steps;       // steps of rows, as if a tile of rows filled in part cost as much as a full one
  int64_t rows_in_flight;  // rollouts that there was room for at a time
  int64_t scratch_bytes;   // of all threads together
};

class Engine {
 public:
  // `squash` is one word an action, or the one word "argmax". `features` is "z", "zh" or "zhc".
  Engine(const Weights& weights, const std::string& features, const std::vector<std::string>& squash,
         int64_t hidden_units, Precision precision, const Level& level);

  const Level& level() const { return level_; }
  const Model& model() const { return model_; }
  int64_t params_size() const { return controller_.size; }
  int64_t packed_bytes() const { return packed_bytes_; }

  // Dreams every lane of the plan.
  Work rollout(const Plan& plan, int threads, const std::function<bool()>& interrupted) const;

 private:
  // How the rows of a packed matrix are kept.
  struct Form {
    Element element;
    bool quantised, rounded;
  };
  class Rows;
  template <class T>
  T* allocate(int64_t n);
  void* allocate_vectors(int64_t n);
  const float* keep(const std::vector<float>& values);
  // `taken` maps every column, or row, of what is packed to a row of `weight` [N, depth], -1 where there is none.
  Matrix pack(const float* weight, int64_t depth, const std::vector<int64_t>& taken, const std::vector<float>& bias,
              const Form& form);
  Pairs pack_pairs(const float* weight, int64_t depth, const std::vector<int64_t>& taken,
                   const std::vector<float>& bias, const Form& form);
  void pack_head(const Weights& w, const Form& form);
  std::vector<float> by_dims(const std::vector<float>& values) const;

  const Level& level_;
  Model model_{};
  Controller controller_{};
  std::vector<Squash> squash_;
  std::vector<Matrix> mixture_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  int64_t packed_bytes_ = 0;
};

}  // namespace wm

// The mixture's loss, its gradients and its draws for heads in memory (Bishop 1994; Ha & Schmidhuber 2018, A.2): the body
// that every level compiles. wm_engine/ops/mdn.py is the reference.
//
// A row is copied into whole vectors of dimensions first, so any strides will do and everything after it is the same for
// both mixtures' layouts. Dimensions beyond Z are zeros: their likelihood is 1, which adds nothing. No row sees another,
// so results do not depend on the batch or on which thread takes which rows.
#pragma once

#include "arena.h"
#include "job.h"
#include "mdn.h"

namespace {

using wm::Heads;
using wm::HeadTask;
using wm::View;

constexpr float kHalfLogTwoPi = 0.91893853320467274f;
constexpr float kInfinity = __builtin_inff();

// One row in whole vectors.
struct HeadRow {
  int64_t blocks;   // ceil(Z / kWidth)
  float* parts;     // [blocks][3K][kWidth]: logits (per_dim), means, log standard deviations
  float* x;         // [blocks][kWidth], the target; the normals of a draw
  float* choice;    // [K up to whole vectors], the logits of `shared`
  float* joint;     // [K up to whole vectors] or, per_dim, [K][kWidth]
  float* precision; // [K][kWidth]
  int64_t normal_blocks, block_room;
  uint32_t* philox_blocks;         // [block_room]
  float *u_first, *u_second;       // [2 block_room], and a vector that is read beyond

  HeadRow(Arena& arena, const Heads& h) {
    const int64_t together = (h.mixtures + kWidth - 1) / kWidth * kWidth;
    blocks = (h.latent + kWidth - 1) / kWidth;
    parts = arena.take<float>(blocks * 3 * h.mixtures * kWidth);
    x = arena.take<float>(blocks * kWidth);
    choice = arena.take<float>(together);
    joint = arena.take<float>(h.mixtures * kWidth);
    precision = arena.take<float>(h.mixtures * kWidth);
    normal_blocks = (h.latent + 3) / 4;
    block_room = (2 * normal_blocks + kWidth - 1) / kWidth * kWidth;
    philox_blocks = arena.take<uint32_t>(block_room);
    u_first = arena.take<float>(2 * block_room + kWidth);
    u_second = arena.take<float>(2 * block_room + kWidth);
  }
  // Vector k of a part (0 logits, 1 means, 2 log standard deviations) of one block.
  float* vector(const Heads& h, int64_t block, int64_t part, int64_t k) const {
    return parts + ((block * 3 + part) * h.mixtures + k) * kWidth;
  }
};

inline void load_dimensions(const float* from, int64_t stride, int64_t n, float* to) {
  int64_t i = 0;
  for (; i < n && i < kWidth; ++i) to[i] = from[i * stride];
  for (; i < kWidth; ++i) to[i] = 0.0f;
}

inline void load_part(const HeadRow& r, const Heads& h, const View& view, int64_t part, int64_t row) {
  for (int64_t block = 0; block < r.blocks; ++block) {
    const float* from = view.data + row * view.row + block * kWidth * view.dim;
    for (int64_t k = 0; k < h.mixtures; ++k)
      load_dimensions(from + k * view.component, view.dim, h.latent - block * kWidth, r.vector(h, block, part, k));
  }
}

inline void load_row(const HeadRow& r, const Heads& h, int64_t row) {
  if (h.per_dim) {
    load_part(r, h, h.logits, 0, row);
  } else {
    const float* from = h.logits.data + row * h.logits.row;
    int64_t k = 0;
    for (; k < h.mixtures; ++k) r.choice[k] = from[k * h.logits.component];
    for (; k % kWidth; ++k) r.choice[k] = -kInfinity;
  }
  load_part(r, h, h.means, 1, row);
  load_part(r, h, h.log_stds, 2, row);
}

inline void load_target(const HeadRow& r, const Heads& h, int64_t row) {
  for (int64_t block = 0; block < r.blocks; ++block)
    load_dimensions(h.target.data + row * h.target.row + block * kWidth * h.target.dim, h.target.dim,
                    h.latent - block * kWidth, r.x + block * kWidth);
}

// e^x for x <= 0, and 0 where float32 ends: what vanishes must stay nothing when it is multiplied by a large distance.
inline F decay(F x) { return select(less(x, set1(-87.0f)), set1(0.0f), exponential(x)); }

// ln of a sum that is at least 1, or NaN. (A sum of nothing, 0, gives some number: -infinity is added to it then.)
inline F log_of_sum(F sum) { return fma(sum, set1(0.0f), logarithm(sum)); }

inline F larger(F a, F b) { return select(less(a, b), b, a); }

// Where everything is -infinity, so is the largest; distances from it would be NaN.
inline F finite_top(F top) { return select(less(top, set1(-3.40282347e+38f)), set1(0.0f), top); }

// log N(x; mean, std) + log sqrt(2 pi) for a vector of dimensions; the standardised distance and 1 / std.
inline F log_density(F x, F mean, F log_std, F& standard, F& precision) {
  const F clamped = clamped_log_std(log_std);
  precision = exponential(set1(0.0f) - clamped);
  standard = (x - mean) * precision;
  return set1(-0.5f) * standard * standard - clamped;
}

// The gradients of one component and vector of dimensions, in place of its standardised distances and log standard
// deviations; the part of the target's is returned. `weight` is the component's responsibility times the loss's gradient.
inline F component_gradients(F weight, F precision, float* standards, float* log_stds) {
  const F standard = load(standards), log_std = load(log_stds), to_x = weight * standard * precision;
  const F within = weight * (set1(1.0f) - standard * standard), none = set1(0.0f);
  store(standards, none - to_x);
  store(log_stds, select(at_least(set1(kLogStdHigh), log_std),
                         select(at_least(log_std, set1(kLogStdLow)), within, none), none));
  return to_x;
}

// The log likelihood of a vector of dimensions, each with a choice of its own; with Gradients, those in place of the
// block's parts and of its target.
template <bool Gradients>
inline F per_dim_block(const HeadRow& r, const Heads& h, int64_t block, float scale) {
  const int64_t K = h.mixtures;
  const F x = load(r.x + block * kWidth);
  F top = load(r.vector(h, block, 0, 0));
  for (int64_t k = 1; k < K; ++k) top = larger(top, load(r.vector(h, block, 0, k)));
  F total = set1(0.0f), joint_top = set1(-kInfinity);
  for (int64_t k = 0; k < K; ++k) {
    float *logit = r.vector(h, block, 0, k), *mean = r.vector(h, block, 1, k);
    F standard, precision;
    const F log_p = load(logit) - top, p = decay(log_p);
    const F joint = log_p + log_density(x, load(mean), load(r.vector(h, block, 2, k)), standard, precision);
    total = total + p;
    joint_top = larger(joint_top, joint);
    store(r.joint + k * kWidth, joint);
    if (Gradients) {
      store(logit, p);
      store(mean, standard);
      store(r.precision + k * kWidth, precision);
    }
  }
  const F from = finite_top(joint_top);
  F joint_total = set1(0.0f);
  for (int64_t k = 0; k < K; ++k) {
    const F joint = decay(load(r.joint + k * kWidth) - from);
    joint_total = joint_total + joint;
    if (Gradients) store(r.joint + k * kWidth, joint);
  }
  if (Gradients) {
    const F each = set1(scale) / total, every = set1(scale) / joint_total;
    F to_x = set1(0.0f);
    for (int64_t k = 0; k < K; ++k) {
      const F weight = load(r.joint + k * kWidth) * every;
      float* logit = r.vector(h, block, 0, k);
      store(logit, load(logit) * each - weight);
      to_x = to_x + component_gradients(weight, load(r.precision + k * kWidth), r.vector(h, block, 1, k),
                                        r.vector(h, block, 2, k));
    }
    store(r.x + block * kWidth, to_x);
  }
  return joint_top + log_of_sum(joint_total) - log_of_sum(total);
}

// As above for a row with one choice for all dimensions; the logits' gradients in place of `choice`.
template <bool Gradients>
inline float shared_row(const HeadRow& r, const Heads& h, float scale) {
  const int64_t K = h.mixtures;
  float top = r.choice[0], joint_top = -kInfinity;
  for (int64_t k = 1; k < K; ++k)
    if (r.choice[k] > top) top = r.choice[k];
  for (int64_t k = 0; k < K; ++k) {
    F density = set1(0.0f);
    for (int64_t block = 0; block < r.blocks; ++block) {
      F standard, precision;
      float* mean = r.vector(h, block, 1, k);
      density = density + log_density(load(r.x + block * kWidth), load(mean), load(r.vector(h, block, 2, k)), standard,
                                      precision);
      if (Gradients) {
        store(r.vector(h, block, 0, k), precision);
        store(mean, standard);
      }
    }
    r.joint[k] = r.choice[k] - top + sum(density);
    if (r.joint[k] > joint_top) joint_top = r.joint[k];
  }
  for (int64_t k = K; k % kWidth; ++k) r.joint[k] = -kInfinity;
  const F first = set1(top), from = finite_top(set1(joint_top));
  F totals = set1(0.0f), joint_totals = set1(0.0f);
  for (int64_t k = 0; k < K; k += kWidth) {
    const F p = decay(load(r.choice + k) - first), joint = decay(load(r.joint + k) - from);
    totals = totals + p;
    joint_totals = joint_totals + joint;
    store(r.choice + k, p);
    store(r.joint + k, joint);
  }
  const float total = sum(totals), joint_total = sum(joint_totals);
  if (Gradients) {
    for (int64_t k = 0; k < K; ++k) {
      r.joint[k] *= scale / joint_total;
      r.choice[k] = r.choice[k] * (scale / total) - r.joint[k];
    }
    for (int64_t block = 0; block < r.blocks; ++block) {
      F to_x = set1(0.0f);
      for (int64_t k = 0; k < K; ++k)
        to_x = to_x + component_gradients(set1(r.joint[k]), load(r.vector(h, block, 0, k)), r.vector(h, block, 1, k),
                                          r.vector(h, block, 2, k));
      store(r.x + block * kWidth, to_x);
    }
  }
  float log_ratio[kWidth];
  store(log_ratio, log_of_sum(set1(joint_total)) - log_of_sum(set1(total)));
  return joint_top + log_ratio[0];
}

// The log likelihood of the target under a row that was loaded, less Z times the constant.
template <bool Gradients>
inline float log_likelihood(const HeadRow& r, const Heads& h, float scale) {
  if (!h.per_dim) return shared_row<Gradients>(r, h, scale);
  F all = set1(0.0f);
  for (int64_t block = 0; block < r.blocks; ++block) all = all + per_dim_block<Gradients>(r, h, block, scale);
  return sum(all);
}

// A part's vectors [blocks][K][kWidth] to a row [Z, K].
inline void store_part(const HeadRow& r, const Heads& h, int64_t part, float* to) {
  for (int64_t d = 0; d < h.latent; ++d) {
    const float* from = r.vector(h, d / kWidth, part, 0) + d % kWidth;
    for (int64_t k = 0; k < h.mixtures; ++k) *to++ = from[k * kWidth];
  }
}

inline void row_gradients(const HeadRow& r, const Heads& h, int64_t row) {
  const int64_t Z = h.latent, K = h.mixtures;
  load_row(r, h, row);
  load_target(r, h, row);
  log_likelihood<true>(r, h, h.grad.data[row * h.grad.row] / static_cast<float>(Z));
  if (h.per_dim)
    store_part(r, h, 0, h.to_logits + row * Z * K);
  else
    for (int64_t k = 0; k < K; ++k) h.to_logits[row * K + k] = r.choice[k];
  store_part(r, h, 1, h.to_means + row * Z * K);
  store_part(r, h, 2, h.to_log_stds + row * Z * K);
  for (int64_t d = 0; d < Z; ++d) h.to_target[row * Z + d] = r.x[d];
}

inline void draw_row(const HeadRow& r, const Heads& h, const Temperature& temperature, int64_t row) {
  load_row(r, h, row);
  const auto word = [&](int64_t i) { return set1(static_cast<uint32_t>(h.counters[row * 3 + i])); };
  if (!temperature.zero) {
    for (int64_t i = 0; i < r.block_room; i += kWidth)
      uniforms(load(r.philox_blocks + i), word(0), word(1), word(2), h.key0, h.key1, r.u_first + 2 * i,
               r.u_second + 2 * i);
    step_normals(r.u_first, r.u_second, h.latent, r.x);
  }
  const int64_t chosen =
      h.per_dim ? 0 : choose(r.choice, h.mixtures, r.u_first[2 * r.normal_blocks], temperature, r.joint);
  for (int64_t block = 0; block < r.blocks; ++block) {
    float* x = r.x + block * kWidth;
    F mean, log_std;
    if (h.per_dim) {
      const F u = choice_uniforms(r.u_first, r.u_second, r.normal_blocks, block);
      const F choice = choose_per_dim(r.vector(h, block, 0, 0), h.mixtures, u, temperature);
      mean = pick(r.vector(h, block, 1, 0), kWidth, h.mixtures, choice);
      log_std = pick(r.vector(h, block, 2, 0), kWidth, h.mixtures, choice);
    } else {
      mean = load(r.vector(h, block, 1, chosen));
      log_std = load(r.vector(h, block, 2, chosen));
    }
    store(x, temperature.zero ? mean : draw(mean, log_std, load(x), temperature.root));
  }
  for (int64_t d = 0; d < h.latent; ++d) h.z[row * h.latent + d] = r.x[d];
}

size_t heads_scratch(const Heads& heads) {
  Arena arena{nullptr, 0};
  HeadRow(arena, heads);
  return arena.used;
}

void run_heads(HeadTask task, const Heads& h, void* scratch, int64_t first, int64_t end) {
  Arena arena{static_cast<char*>(scratch), 0};
  const HeadRow r(arena, h);
  const Temperature temperature = temperature_of(h.temperature);
  for (int64_t i = 0; i < r.block_room; ++i) r.philox_blocks[i] = static_cast<uint32_t>(i);
  for (int64_t row = first; row < end; ++row) {
    if (task == HeadTask::nll) {
      load_row(r, h, row);
      load_target(r, h, row);
      h.nll[row] = kHalfLogTwoPi - log_likelihood<false>(r, h, 0.0f) / static_cast<float>(h.latent);
    } else if (task == HeadTask::gradients) {
      row_gradients(r, h, row);
    } else {
      draw_row(r, h, temperature, row);
    }
  }
}

}  // namespace

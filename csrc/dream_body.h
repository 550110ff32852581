// A thread's tile of rollouts through all their steps: the body that every level compiles.
//
//   next lane -> controller -> gates and cell -> reward, end -> mixture -> draw -> (ended: next lane) -> ...
//
// The rows of the tile are rollouts at steps of their own. A row that ends takes the next lane, and when there is none
// the last row moves into its place, so that the cost follows the steps lived. Nothing is allocated here.
#pragma once

#if defined(WM_PROFILE)
#include <time.h>
#endif

#include "arena.h"
#include "job.h"
#include "lstm.h"
#include "mdn.h"

namespace {

using wm::Hooks;
using wm::Job;
using wm::Squash;

// What stays the same for a whole call.
struct Layout {
  int64_t state_hidden;   // where h begins in a state row [z, a, ..., h]
  int64_t state_row, cell_row, control_row, head_row, unit_row;
  int64_t normal_blocks;  // Philox blocks of a step's normals: ceil(Z/4)
  int64_t blocks, block_room, noise_row;
  int64_t choice_at, done_at;  // where the blocks of the choice and of the end stand in a step's list
};

inline Layout layout_of(const Job& job) {
  const wm::Model& m = job.model;
  Layout l;
  l.state_hidden = round_up(m.latent + m.action, kWidth);
  l.cell_row = m.unit_blocks * kWidth;
  l.state_row = l.state_hidden + l.cell_row;
  l.control_row = (m.control.vectors + 1) * kWidth;
  l.head_row = m.latent_blocks * kWidth * (m.per_dim ? 3 * m.mixtures : 2);
  l.unit_row = round_up(job.controller.hidden_units > m.action ? job.controller.hidden_units : m.action, kWidth);
  l.normal_blocks = (m.latent + 3) / 4;
  l.choice_at = l.normal_blocks;
  l.blocks = l.normal_blocks + (m.per_dim ? l.normal_blocks : 1);
  l.done_at = l.blocks;
  if (job.plan.sample_done) ++l.blocks;
  l.block_room = round_up(l.blocks, kWidth);
  l.noise_row = 2 * l.block_room + 2 * kWidth;
  return l;
}

template <class Mode>
struct Tile {
  typedef typename Mode::In In;
  typedef typename Mode::Hid Hid;

  float* state[2];  // [rows, state_row]: now and next
  In* in;           // [rows, in_row]: z, a as they are multiplied
  Hid* hid[2];      // [rows, hid_row]
  float* unit[2];   // [rows]: the size of one unit of an int8 h
  float* cell;      // [rows, cell_row]
  float* control;   // [rows, control_row]
  float* head;      // [rows, head_row]
  float* units;     // [2, unit_row]: the controller's layers
  float* logits;    // [control_row]
  float* u_end;     // [rows]
  float *u_first, *u_second;            // [noise_row]
  uint32_t* blocks;                     // [block_room]
  int64_t *lane, *chosen, *order;       // [rows]
  int32_t* step;                        // [rows]
  double* total;                        // [rows]
  bool* bad;                            // [rows]: something became non-finite
  int64_t in_row, hid_row;

  Tile(Arena& arena, const Job& job, const Layout& l, int64_t rows) {
    const wm::Model& m = job.model;
    in_row = round_up(Mode::kCopies ? padded<In>(m.latent + m.action) : 0, 64);
    hid_row = round_up(Mode::kCopies ? l.cell_row : 0, 64);
    for (int i = 0; i < 2; ++i) {
      state[i] = arena.take<float>(rows * l.state_row);
      hid[i] = arena.take<Hid>(rows * hid_row);
      unit[i] = arena.take<float>(rows);
    }
    in = arena.take<In>(rows * in_row);
    cell = arena.take<float>(rows * l.cell_row);
    control = arena.take<float>(rows * l.control_row);
    head = arena.take<float>(rows * l.head_row);
    units = arena.take<float>(2 * l.unit_row);
    logits = arena.take<float>(l.control_row);
    u_end = arena.take<float>(rows);
    u_first = arena.take<float>(l.noise_row);
    u_second = arena.take<float>(l.noise_row);
    blocks = arena.take<uint32_t>(l.block_room);
    lane = arena.take<int64_t>(rows);
    chosen = arena.take<int64_t>(rows);
    order = arena.take<int64_t>(rows);
    step = arena.take<int32_t>(rows);
    total = arena.take<double>(rows);
    bad = arena.take<bool>(rows);
  }
};

inline float dot(const float* w, const float* x, int64_t n) {
  F acc = set1(0.0f);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) acc = fma(load(w + i), load(x + i), acc);
  if (i < n) acc = fma(load_first(w + i, n - i), load_first(x + i, n - i), acc);
  return sum(acc);
}

inline float squashed(Squash squash, float x, float tanh, float sigmoid) {
  switch (squash) {
    case Squash::tanh:
      return tanh;
    case Squash::sigmoid:
      return sigmoid;
    case Squash::tanh01:
      return (tanh + 1.0f) * 0.5f;
    case Squash::relu_tanh:
      return tanh < 0.0f ? 0.0f : tanh;
    case Squash::identity:
      return x;
  }
  return x;
}

// Calls body(Count<R>, first row) for all rows in tiles of kRows and one smaller tile at the end.
template <int R, class Body>
inline void smaller_tile(int64_t rows, int64_t first, const Body& body) {
  if constexpr (R > 0) {
    if (rows == R)
      body(Count<R>(), first);
    else
      smaller_tile<R - 1>(rows, first, body);
  }
}
template <class Body>
inline void for_tiles(int64_t rows, const Body& body) {
  int64_t first = 0;
  for (; first + kRows <= rows; first += kRows) body(Count<kRows>(), first);
  smaller_tile<kRows - 1>(rows - first, first, body);
}

// y[row] = W h[row] + b for all columns of one matrix; `row_of` says which rows, `n` how many.
template <class Mode, class RowOf>
inline void multiply(const Matrix& m, int64_t depth, int64_t n, const RowOf& row_of, const typename Mode::Hid* h,
                     int64_t h_row, const float* unit, float* y, int64_t y_row) {
  typedef typename Mode::Hid Hid;
  const int64_t groups = (m.vectors + kGroup - 1) / kGroup;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t vectors = m.vectors - group * kGroup;
    for_tiles(n, [&](auto count, int64_t first) {
      constexpr int R = decltype(count)::value;
      const Hid* x[R];
      float* out[R];
      float size[R];
      for (int r = 0; r < R; ++r) {
        const int64_t row = row_of(first + r);
        x[r] = h + row * h_row;
        out[r] = y + row * y_row;
        size[r] = Mode::kQuantised ? unit[row] : 0.0f;
      }
      if (vectors >= 4)
        multiply_group<Mode, R, 4>(x, size, m, group, depth, out);
      else if (vectors == 3)
        multiply_group<Mode, R, 3>(x, size, m, group, depth, out);
      else if (vectors == 2)
        multiply_group<Mode, R, 2>(x, size, m, group, depth, out);
      else
        multiply_group<Mode, R, 1>(x, size, m, group, depth, out);
    });
  }
}

template <class Mode>
class Dream {
 public:
  typedef typename Mode::In In;
  typedef typename Mode::Hid Hid;

  Dream(const Job& job, Arena& arena, int64_t rows)
      : job_(job), model_(job.model), plan_(job.plan), layout_(layout_of(job)), tile_(arena, job, layout_, rows) {}

  void run(const Hooks& hooks, int64_t rows) {
    prepare();
    int64_t live = 0;
    for (; live < rows; ++live) {
      const int64_t lane = hooks.next_lane(hooks.context);
      if (lane < 0) break;
      begin(live, lane);
    }
    start_laps(hooks);
    int64_t register_tiles = 0;
    while (live > 0 && !hooks.stopped(hooks.context)) {
      const int64_t rows_now = live;
      register_tiles += (rows_now + kRows - 1) / kRows;
      for (int64_t row = 0; row < live; ++row) act(row);
      lap(wm::Phase::controller, rows_now);
      gates(live);
      lap(wm::Phase::gates, rows_now);
      control(live);
      lap(wm::Phase::reward_and_end, rows_now);
      mixture(live);
      now_ ^= 1;
      for (int64_t row = live - 1; row >= 0; --row) {
        if (!finish_step(row)) continue;
        const int64_t lane = hooks.next_lane(hooks.context);
        if (lane >= 0)
          begin(row, lane);
        else if (row != --live)
          move(row, live);
      }
      lap(wm::Phase::ends, rows_now);
    }
    hooks.worked(hooks.context, register_tiles);
  }

 private:
#if defined(WM_PROFILE)
  static int64_t nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
  }
  void start_laps(const Hooks& hooks) {
    hooks_ = &hooks;
    lap_ = nanoseconds();
  }
  // Books the time since the last lap.
  void lap(wm::Phase phase, int64_t rows) {
    const int64_t now = nanoseconds();
    hooks_->lap(hooks_->context, phase, rows, lap_, now);
    lap_ = now;
  }
  const Hooks* hooks_ = nullptr;
  int64_t lap_ = 0;
#else
  void start_laps(const Hooks&) {}
  void lap(wm::Phase, int64_t) {}
#endif

  void prepare() {
    temperature_ = temperature_of(plan_.temperature);
    for (int64_t i = 0; i < layout_.block_room; ++i) tile_.blocks[i] = static_cast<uint32_t>(i);
    if (plan_.sample_done) tile_.blocks[layout_.done_at] = static_cast<uint32_t>(2 * layout_.normal_blocks);
    for (int64_t i = 0; i < 2 * layout_.unit_row; ++i) tile_.units[i] = 0.0f;
    noisy_ = !temperature_.zero || plan_.sample_done;
  }

  float* state(int when, int64_t row) { return tile_.state[now_ ^ when] + row * layout_.state_row; }
  float* hidden(int when, int64_t row) { return state(when, row) + layout_.state_hidden; }
  Hid* operand(int when, int64_t row) {
    if constexpr (Mode::kCopies)
      return tile_.hid[now_ ^ when] + row * tile_.hid_row;
    else
      return hidden(when, row);
  }
  int64_t operand_row() const { return Mode::kCopies ? tile_.hid_row : layout_.state_row; }

  void begin(int64_t row, int64_t lane) {
    const int64_t start = lane % plan_.episodes % plan_.starts;
    float *s = state(0, row), *h = hidden(0, row), *c = tile_.cell + row * layout_.cell_row;
    for (int64_t i = 0; i < layout_.state_row; ++i) s[i] = 0.0f;
    for (int64_t i = 0; i < layout_.cell_row; ++i) c[i] = 0.0f;
    for (int64_t i = 0; i < model_.latent; ++i) s[i] = plan_.z[start * model_.latent + i];
    for (int64_t i = 0; i < model_.hidden && plan_.h; ++i) h[i] = plan_.h[start * model_.hidden + i];
    for (int64_t i = 0; i < model_.hidden && plan_.c; ++i) c[i] = plan_.c[start * model_.hidden + i];
    keep_hidden(0, row);
    tile_.lane[row] = lane;
    tile_.step[row] = 0;
    tile_.total[row] = 0.0;
    tile_.bad[row] = false;
  }

  void move(int64_t to, int64_t from) {
    __builtin_memcpy(state(0, to), state(0, from), static_cast<size_t>(layout_.state_row) * sizeof(float));
    __builtin_memcpy(tile_.cell + to * layout_.cell_row, tile_.cell + from * layout_.cell_row,
                     static_cast<size_t>(layout_.cell_row) * sizeof(float));
    if constexpr (Mode::kCopies)
      __builtin_memcpy(operand(0, to), operand(0, from), static_cast<size_t>(tile_.hid_row) * sizeof(Hid));
    tile_.unit[now_][to] = tile_.unit[now_][from];
    tile_.lane[to] = tile_.lane[from];
    tile_.step[to] = tile_.step[from];
    tile_.total[to] = tile_.total[from];
    tile_.bad[to] = tile_.bad[from];
  }

  // h as it is multiplied: rounded to bf16, or to int8 with the row's own unit.
  void keep_hidden(int when, int64_t row) {
    if constexpr (Mode::kCopies) {
      const float* h = hidden(when, row);
      Hid* out = operand(when, row);
      const int64_t n = layout_.cell_row;
      if constexpr (Mode::kQuantised) {
        F top = set1(0.0f), nan = set1(0.0f);
        for (int64_t i = 0; i < n; i += kWidth) {
          const F x = load(h + i);
          top = not_below(absolute(x), top);
          nan = fma(x, set1(0.0f), nan);
        }
        const float most = largest(top), check = sum(nan);
        // A row of zeros has any unit; a non-finite one could not be told from the integers.
        const float size = most > 1e-30f && check == 0.0f ? most / 127.0f : 1.0f;
        if (check != 0.0f) tile_.bad[row] = true;
        tile_.unit[now_ ^ when][row] = size;
        quantise(h, 1.0f / size, out, n);
      } else {
        convert(h, out, n);
      }
    }
  }

  static void convert(const float* x, Half* y, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512BF16__)
    for (; i + kWidth <= n; i += kWidth) {
      const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
      __builtin_memcpy(y + i, &half, sizeof half);
    }
#endif
    for (; i < n; ++i) y[i] = to_half(x[i]);
  }
  static void convert(const float* x, float* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = from_half(to_half(x[i]));
  }
  static void quantise(const float* x, float inverse, float* y, int64_t n) {
    for (int64_t i = 0; i < n; i += kWidth) store(y + i, nearest(load(x + i) * set1(inverse)));
  }
#if defined(__AVX512VNNI__)
  static void quantise(const float* x, float inverse, uint8_t* y, int64_t n) {
    for (int64_t i = 0; i < n; i += kWidth) {
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
      const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
      __builtin_memcpy(y + i, &bytes, sizeof bytes);
    }
  }
#endif

  // One layer of the controller: rows of `weights` times the feature row, or times the layer below.
  void act(int64_t row) {
    const wm::Controller& c = job_.controller;
    const int64_t actions = model_.action, features = c.features, unit_row = layout_.unit_row;
    const float* w = plan_.params + tile_.lane[row] / plan_.episodes * c.size;
    const float *z = state(0, row), *h = hidden(0, row), *cell = tile_.cell + row * layout_.cell_row;
    const auto feature_dot = [&](const float* weights) {
      float x = dot(weights, z, model_.latent);
      if (c.use_h) x += dot(weights + model_.latent, h, model_.hidden);
      if (c.use_c) x += dot(weights + model_.latent + model_.hidden, cell, model_.hidden);
      return x;
    };
    float* out = tile_.units;
    if (c.hidden_units == 0) {
      for (int64_t i = 0; i < actions; ++i) out[i] = feature_dot(w + i * features) + w[actions * features + i];
    } else {
      const int64_t n = c.hidden_units;
      float* layer = tile_.units + unit_row;
      for (int64_t i = 0; i < n; ++i) layer[i] = feature_dot(w + i * features) + w[n * features + i];
      for (int64_t i = 0; i < n; i += kWidth) store(layer + i, hyperbolic_tangent(load(layer + i)));
      w += n * features + n;
      for (int64_t i = 0; i < actions; ++i) out[i] = dot(w + i * n, layer, n) + w[actions * n + i];
    }

    float* a = state(0, row) + model_.latent;
    int64_t best = 0;
    float finite = 0.0f;
    for (int64_t i = 0; i < actions; ++i) {
      finite += out[i] * 0.0f;
      if (out[i] > out[best]) best = i;
    }
    if (finite != 0.0f) tile_.bad[row] = true;
    if (c.argmax) {
      for (int64_t i = 0; i < actions; ++i) a[i] = i == best ? 1.0f : 0.0f;
    } else {
      for (int64_t i = 0; i < actions; i += kWidth) {
        const F x = load(out + i);
        float t[kWidth], s[kWidth];
        store(t, hyperbolic_tangent(x));
        store(s, sigmoid(x));
        for (int64_t j = i; j < actions && j < i + kWidth; ++j)
          a[j] = squashed(c.squash[j], out[j], t[j - i], s[j - i]);
      }
    }
    if constexpr (Mode::kCopies) {
      In* in = tile_.in + row * tile_.in_row;
      const int64_t n = model_.latent + model_.action;
      convert(z, in, n);
      for (int64_t i = n; i < padded<In>(n); ++i) in[i] = 0;
    }
  }

  void gates(int64_t live) {
    const int64_t in_row = Mode::kCopies ? tile_.in_row : layout_.state_row;
    const In* in = nullptr;
    if constexpr (Mode::kCopies)
      in = tile_.in;
    else
      in = state(0, 0);
    for (int64_t block = 0; block < model_.unit_blocks; ++block) {
      for_tiles(live, [&](auto count, int64_t first) {
        constexpr int R = decltype(count)::value;
        const In* x[R];
        const Hid* h[R];
        float *c[R], *next[R], size[R];
        for (int r = 0; r < R; ++r) {
          x[r] = in + (first + r) * in_row;
          h[r] = operand(0, first + r);
          c[r] = tile_.cell + (first + r) * layout_.cell_row;
          next[r] = hidden(1, first + r);
          size[r] = Mode::kQuantised ? tile_.unit[now_][first + r] : 0.0f;
        }
        lstm_block<Mode, R>(model_, block, x, h, size, c, next);
      });
    }
    for (int64_t row = 0; row < live; ++row) keep_hidden(1, row);
  }

  void control(int64_t live) {
    multiply<Fp32>(model_.control, model_.hidden, live, [](int64_t i) { return i; }, hidden(1, 0), layout_.state_row,
                   nullptr, tile_.control, layout_.control_row);
  }

  // The step's uniforms in u_first (words 0 and 2 in turn) and u_second (words 1 and 3); its normals where z' will be.
  void noise(int64_t row) {
    if (!noisy_) return;
    const int64_t lane = tile_.lane[row];
    const uint32_t candidate =
        plan_.common_random_numbers ? 0 : plan_.first_candidate + static_cast<uint32_t>(lane / plan_.episodes);
    const U step = set1(static_cast<uint32_t>(tile_.step[row]));
    const U episode = set1(static_cast<uint32_t>(lane % plan_.episodes)), who = set1(candidate);
    step_uniforms(tile_.blocks, layout_.block_room, step, episode, who, plan_.key0, plan_.key1, tile_.u_first,
                  tile_.u_second);
    if (plan_.sample_done) tile_.u_end[row] = tile_.u_first[2 * layout_.done_at];
    step_normals(tile_.u_first, tile_.u_second, model_.latent, state(1, row));
  }

  void mixture(int64_t live) {
    if (model_.per_dim) {
      multiply<Mode>(model_.mixture[0], model_.hidden, live, [](int64_t i) { return i; }, operand(1, 0), operand_row(),
                     tile_.unit[now_ ^ 1], tile_.head, layout_.head_row);
      lap(wm::Phase::mixture, live);
      for (int64_t row = 0; row < live; ++row) {
        noise(row);
        lap(wm::Phase::noise, 1);
        draw_row_per_dim(row);
        lap(wm::Phase::draw, 1);
      }
      return;
    }
    // Exact shortcut: the component is chosen first, and only its means and deviations are computed, the rows taken
    // component by component.
    for (int64_t row = 0; row < live; ++row) {
      noise(row);
      tile_.chosen[row] = choose(tile_.control + row * layout_.control_row + 2, model_.mixtures,
                                 tile_.u_first[2 * layout_.choice_at], temperature_, tile_.logits);
    }
    lap(wm::Phase::noise, live);
    for (int64_t k = 0; k < model_.mixtures; ++k) {
      int64_t n = 0;
      for (int64_t row = 0; row < live; ++row)
        if (tile_.chosen[row] == k) tile_.order[n++] = row;
      multiply<Mode>(model_.mixture[k], model_.hidden, n, [this](int64_t i) { return tile_.order[i]; }, operand(1, 0),
                     operand_row(), tile_.unit[now_ ^ 1], tile_.head, layout_.head_row);
    }
    lap(wm::Phase::mixture, live);
    for (int64_t row = 0; row < live; ++row) draw_row_shared(row);
    lap(wm::Phase::draw, live);
  }

  void draw_row_per_dim(int64_t row) {
    float *z = state(1, row), *head = tile_.head + row * layout_.head_row;
    for (int64_t block = 0; block < model_.latent_blocks; ++block) {
      float* out = z + block * kWidth;
      const F u = choice_uniforms(tile_.u_first, tile_.u_second, layout_.choice_at, block);
      store(out, draw_per_dim(head + block * 3 * model_.mixtures * kWidth, model_.mixtures, u, load(out), temperature_));
    }
  }

  void draw_row_shared(int64_t row) {
    float *z = state(1, row), *head = tile_.head + row * layout_.head_row;
    for (int64_t block = 0; block < model_.latent_blocks; ++block, head += 2 * kWidth) {
      float* out = z + block * kWidth;
      store(out, temperature_.zero ? load(head) : draw(load(head), load(head + kWidth), load(out), temperature_.root));
    }
  }

  // Books the step; true if the rollout ended with it.
  bool finish_step(int64_t row) {
    const int64_t lane = tile_.lane[row], latent = model_.latent, actions = model_.action;
    const int32_t step = tile_.step[row]++;
    const float *z = state(0, row), *a = state(1, row) + latent;
    const float* head = tile_.control + row * layout_.control_row;
    const float reward = plan_.survival ? 1.0f : head[0];
    tile_.total[row] += static_cast<double>(reward);
    const float total = static_cast<float>(tile_.total[row]);

    if (plan_.zs) {
      const int64_t at = step * plan_.candidates * plan_.episodes + lane;
      for (int64_t j = 0; j < latent; ++j) plan_.zs[at * latent + j] = z[j];
      for (int64_t j = 0; j < actions; ++j) plan_.actions[at * actions + j] = a[j];
      plan_.rewards[at] = reward;
    }
    // x * 0 is 0 only where x is finite.
    F check = set1((total + head[0] + head[1]) * 0.0f);
    int64_t i = 0;
    for (; i + kWidth <= latent; i += kWidth) check = fma(load(z + i), set1(0.0f), check);
    check = fma(load_first(z + i, latent - i), set1(0.0f), check);
    if (tile_.bad[row] || sum(check) != 0.0f) {
      plan_.returns[lane] = __builtin_nanf("");
      plan_.lengths[lane] = step + 1;
      return true;
    }
    float threshold = 0.0f, end = head[1];
    if (plan_.sample_done) {
      float probability[kWidth];
      store(probability, sigmoid(set1(end)));
      end = probability[0];
      threshold = tile_.u_end[row];
    }
    if (!(end > threshold) && step + 1 < plan_.steps) return false;
    plan_.returns[lane] = total;
    plan_.lengths[lane] = step + 1;
    return true;
  }

  const Job& job_;
  const wm::Model& model_;
  const wm::Plan& plan_;
  const Layout layout_;
  Tile<Mode> tile_;
  Temperature temperature_{};
  bool noisy_ = true;
  int now_ = 0;
};

template <class Mode>
inline void run_mode(const Job& job, const Hooks& hooks, void* scratch, int64_t rows) {
  Arena arena{static_cast<char*>(scratch), 0};
  Dream<Mode>(job, arena, rows).run(hooks, rows);
}
template <class Mode>
inline size_t count_mode(const Job& job, int64_t rows) {
  Arena arena{nullptr, 0};
  Tile<Mode>(arena, job, layout_of(job), rows);
  return arena.used;
}

void rollout(const Job& job, const Hooks& hooks, void* scratch, int64_t rows) {
  const wm::Model& m = job.model;
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
  if (m.hidden_element == Element::int8) return run_mode<Int8>(job, hooks, scratch, rows);
  if (m.hidden_element == Element::bf16) return run_mode<Bf16>(job, hooks, scratch, rows);
#elif defined(__AVX512VNNI__)
  if (m.hidden_element == Element::int8) return run_mode<Int8FloatInput>(job, hooks, scratch, rows);
#endif
  if (m.quantised) return run_mode<Int8AsFloat>(job, hooks, scratch, rows);
  if (m.rounded) return run_mode<Bf16AsFloat>(job, hooks, scratch, rows);
  run_mode<Fp32>(job, hooks, scratch, rows);
}

// Room for any precision: the largest of them.
size_t scratch_bytes(const Job& job, int64_t rows) { return count_mode<Int8AsFloat>(job, rows); }

void map(wm::Function function, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t some = n - i < kWidth ? n - i : kWidth;
    const F v = load_first(x + i, some);
    F result = v;
    switch (function) {
      case wm::Function::exp:
        result = exponential(v);
        break;
      case wm::Function::log:
        result = logarithm(v);
        break;
      case wm::Function::tanh:
        result = hyperbolic_tangent(v);
        break;
      case wm::Function::sigmoid:
        result = sigmoid(v);
        break;
      case wm::Function::cos_turn:
        result = turn(v).low;
        break;
      case wm::Function::sin_turn:
        result = turn(v).high;
        break;
    }
    float out[kWidth];
    store(out, result);
    for (int64_t j = 0; j < some; ++j) y[i + j] = out[j];
  }
}

void store_bits(uint32_t* p, U v) {
  const F bits = as_float(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}

// Counters and words are [4, n], n a whole number of vectors.
void philox_words(const uint32_t* counters, uint32_t key0, uint32_t key1, uint32_t* words, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const uint32_t* c = counters + i;
    const Words w = philox(load(c), load(c + n), load(c + 2 * n), load(c + 3 * n), key0, key1);
    store_bits(words + i, w.w0);
    store_bits(words + n + i, w.w1);
    store_bits(words + 2 * n + i, w.w2);
    store_bits(words + 3 * n + i, w.w3);
  }
}

}  // namespace

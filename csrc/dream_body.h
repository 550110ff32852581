// A thread's tile of rollouts through all their steps: the body that every level compiles.
//
//   next lane -> controller -> gates and cell -> reward, end -> random numbers -> choice of components
//     -> their means and deviations -> draw -> (ended: next lane) -> ...
//
// The rows of the tile are rollouts at steps of their own. A row that ends takes the next lane, and when there is none
// the last row moves into its place, so that the cost follows the steps lived. Nothing is allocated here.
#pragma once

#if defined(WM_PROFILE)
#include <time.h>
#endif

#include "arena.h"
#include "dots.h"
#include "job.h"
#include "lstm.h"
#include "mdn.h"

namespace {

using wm::Hooks;
using wm::Job;
using wm::Squash;

constexpr int kPairRows = kWidth / 2;  // rows whose dot products with one pair of weight rows fill a vector

// Dimensions whose chosen components are multiplied at a time. Group g of a latent block has its dimensions g,
// g + kGroups, ..., so that the folds of the groups fold into the block in order. All components of a group should stay
// in the cache nearest to the core: int8 has room for more of them.
template <class T>
struct Grouping {
  static constexpr int kDims = sizeof(T) == 1 ? 8 : 4, kGroups = kWidth / kDims;
};

// Rows of the tile, and outputs of each, that the controllers make together.
constexpr int kActOutputs = 4, kActRows = kWidth / kActOutputs;

// What stays the same for a whole call.
struct Layout {
  int64_t state_hidden;   // where h begins in a state row [z, a, ..., h]
  int64_t state_row, cell_row, control_row, head_row, chosen_row, layer_row;  // floats
  int64_t partial_row;    // vectors
  int64_t normal_blocks;  // Philox blocks of a step's normals: ceil(Z/4)
  int64_t blocks;         // Philox blocks of a step
  int64_t choice_at, done_at;  // where the blocks of the choice and of the end stand in a step's list
};

inline Layout layout_of(const Job& job) {
  const wm::Model& m = job.model;
  Layout l;
  l.state_hidden = round_up(m.latent + m.action, kWidth);
  l.cell_row = m.unit_blocks * kWidth;
  l.state_row = l.state_hidden + l.cell_row;
  l.control_row = round_up(2 * m.control.count, kWidth) + kWidth;
  l.head_row = m.latent_blocks * kWidth * (m.per_dim ? m.mixtures : 2);
  l.chosen_row = m.per_dim ? m.latent_blocks * kWidth : 0;
  l.partial_row = m.per_dim ? m.latent_blocks * 2 * Grouping<float>::kGroups : 0;
  l.layer_row = round_up(job.controller.hidden_units, kWidth);
  l.normal_blocks = (m.latent + 3) / 4;
  l.choice_at = l.normal_blocks;
  l.blocks = l.normal_blocks + (m.per_dim ? l.normal_blocks : 1);
  l.done_at = l.blocks;
  if (job.plan.sample_done) ++l.blocks;
  return l;
}

// Memory that begins as zeros (Buffer), some of which is never written: what pads rows to whole vectors.
template <class Mode>
struct Tile {
  typedef typename Mode::In In;
  typedef typename Mode::Hid Hid;

  float* state[2];  // [rows, state_row]: now and next
  In* in;           // [rows, in_row]: z, a as they are multiplied
  Hid* hid[2];      // [rows, hid_row]
  Hid* gathered;    // [rows, hid_row], with tiles: of the rows that chose one component
  float* unit[2];   // [rows]: the size of one unit of an int8 h
  float* cell;      // [rows, cell_row]
  float* control;   // [rows, control_row]: reward, end, and for `shared` the logits
  float* head;      // [rows, head_row]: per_dim the logits, shared the chosen means and log deviations
  uint32_t* chosen_dims;            // [rows, chosen_row]: per_dim every dimension's component
  typename Dot<Hid>::Sum* partial;  // [rows, partial_row]: the chosen means and log deviations, before the last folds
  float* layer;     // [kActRows, layer_row]: the controllers' hidden units
  float* actions;   // [A, action_row]: what the controller gives, before it is squashed
  float* logits;    // [control_row]
  // The blocks of a step of all rows, row after row: their numbers, whom they are for, and their uniforms.
  uint32_t *block, *block_step, *block_episode, *block_candidate;  // [block_room]
  float *u_first, *u_second;            // [2 block_room]: words 0 and 2 in turn, words 1 and 3
  int64_t *lane, *candidate, *episode;  // [rows]
  int64_t *chosen, *order;              // [rows]: shared the component, and the rows component by component
  int32_t* step;                        // [rows]
  double* total;                        // [rows]
  bool* bad;                            // [rows]: something became non-finite
  int64_t in_row, hid_row, action_row, block_room;

  Tile(Arena& arena, const Job& job, const Layout& l, int64_t rows) {
    const wm::Model& m = job.model;
    in_row = round_up(Mode::kCopies ? padded<In>(m.latent + m.action) : 0, 64);
    hid_row = round_up(Mode::kCopies ? l.cell_row : 0, 64);
    for (Hid*& rows_of_h : hid) rows_of_h = take_operands<Hid>(arena, rows, hid_row);
    gathered = take_operands<Hid>(arena, rows, Mode::kTiles && !m.per_dim ? hid_row : 0);
    in = take_operands<In>(arena, rows, in_row);
    for (int i = 0; i < 2; ++i) {
      state[i] = arena.take<float>(rows * l.state_row);
      unit[i] = arena.take<float>(rows);
    }
    cell = arena.take<float>(rows * l.cell_row);
    control = arena.take<float>(rows * l.control_row);
    head = arena.take<float>(rows * l.head_row);
    chosen_dims = arena.take<uint32_t>(rows * l.chosen_row);
    partial = arena.take<typename Dot<Hid>::Sum>(rows * l.partial_row);
    layer = arena.take<float>(kActRows * l.layer_row);
    action_row = round_up(rows, kWidth);
    actions = arena.take<float>(m.action * action_row);
    logits = arena.take<float>(l.control_row);
    block_room = round_up(rows * l.blocks, kWidth) + 2 * kWidth;  // rows are written, and read, to whole vectors
    block = arena.take<uint32_t>(block_room);
    block_step = arena.take<uint32_t>(block_room);
    block_episode = arena.take<uint32_t>(block_room);
    block_candidate = arena.take<uint32_t>(block_room);
    u_first = arena.take<float>(2 * block_room);
    u_second = arena.take<float>(2 * block_room);
    lane = arena.take<int64_t>(rows);
    candidate = arena.take<int64_t>(rows);
    episode = arena.take<int64_t>(rows);
    chosen = arena.take<int64_t>(rows);
    order = arena.take<int64_t>(rows);
    step = arena.take<int32_t>(rows);
    total = arena.take<double>(rows);
    bad = arena.take<bool>(rows);
    if (kTile > 1) arena.reach(operands_end);
  }

 private:
  size_t operands_end = 0;

  // Tiles are read whole: what lies behind the last row is multiplied too, whatever it is, and nobody reads its sums.
  template <class T>
  T* take_operands(Arena& arena, int64_t rows, int64_t row) {
    const size_t end = arena.used + static_cast<size_t>(round_up(rows, kTile) * row) * sizeof(T);
    if (end > operands_end) operands_end = end;
    return arena.take<T>(rows * row);
  }
};

inline F squashed(Squash squash, F x) {
  switch (squash) {
    case Squash::tanh:
      return hyperbolic_tangent(x);
    case Squash::sigmoid:
      return sigmoid(x);
    case Squash::tanh01:
      return (hyperbolic_tangent(x) + set1(1.0f)) * set1(0.5f);
    case Squash::relu_tanh:
      return not_below(hyperbolic_tangent(x), set1(0.0f));
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
      with_vectors(m.vectors - group * kGroup, [&](auto vectors) WM_FLAT {
        multiply_group<Mode, R, decltype(vectors)::value>(x, size, m, group, depth, out);
      });
    });
  }
}

template <class Mode>
class Dream {
 public:
  typedef typename Mode::In In;
  typedef typename Mode::Hid Hid;
  static constexpr int kGroupDims = Grouping<Hid>::kDims, kGroups = Grouping<Hid>::kGroups;

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
    constexpr int kTogether = Mode::kTiles ? kTile : kRows;
    int64_t row_steps = 0;
    while (live > 0 && !hooks.stopped(hooks.context)) {
      const int64_t rows_now = live;
      row_steps += round_up(rows_now, kTogether);
      act(live);
      lap(wm::Phase::controller, rows_now);
      gates(live);
      lap(wm::Phase::gates, rows_now);
      control(live);
      lap(wm::Phase::reward_and_end, rows_now);
      noise(live);
      lap(wm::Phase::noise, rows_now);
      if (model_.per_dim)
        draw_per_dim(live);
      else
        draw_shared(live);
      lap(wm::Phase::draw, rows_now);
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
    hooks.worked(hooks.context, row_steps);
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
    const int64_t n = layout_.blocks;
    for (int64_t i = 0; i < tile_.block_room; ++i) {
      const bool end = plan_.sample_done && i % n == layout_.done_at;
      tile_.block[i] = static_cast<uint32_t>(end ? 2 * layout_.normal_blocks : i % n);
    }
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
    const int64_t candidate = lane / plan_.episodes, episode = lane % plan_.episodes, start = episode % plan_.starts;
    float *s = state(0, row), *h = hidden(0, row), *c = tile_.cell + row * layout_.cell_row;
    for (int64_t i = 0; i < layout_.state_row; ++i) s[i] = 0.0f;
    for (int64_t i = 0; i < layout_.cell_row; ++i) c[i] = 0.0f;
    for (int64_t i = 0; i < model_.latent; ++i) s[i] = plan_.z[start * model_.latent + i];
    for (int64_t i = 0; i < model_.hidden && plan_.h; ++i) h[i] = plan_.h[start * model_.hidden + i];
    for (int64_t i = 0; i < model_.hidden && plan_.c; ++i) c[i] = plan_.c[start * model_.hidden + i];
    tile_.lane[row] = lane;
    tile_.candidate[row] = candidate;
    tile_.episode[row] = episode;
    tile_.step[row] = 0;
    tile_.total[row] = 0.0;
    tile_.bad[row] = false;
    keep_hidden(0, row);
  }

  void move(int64_t to, int64_t from) {
    __builtin_memcpy(state(0, to), state(0, from), static_cast<size_t>(layout_.state_row) * sizeof(float));
    __builtin_memcpy(tile_.cell + to * layout_.cell_row, tile_.cell + from * layout_.cell_row,
                     static_cast<size_t>(layout_.cell_row) * sizeof(float));
    if constexpr (Mode::kCopies)
      __builtin_memcpy(operand(0, to), operand(0, from), static_cast<size_t>(tile_.hid_row) * sizeof(Hid));
    tile_.unit[now_][to] = tile_.unit[now_][from];
    tile_.lane[to] = tile_.lane[from];
    tile_.candidate[to] = tile_.candidate[from];
    tile_.episode[to] = tile_.episode[from];
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

  // One layer of kActRows rows' controllers, which begin at w: calls put(r, i, output i of row r) for all outputs.
  // add(r, sums, weights) adds row r's products with four rows of weights.
  template <class Add, class Put>
  WM_INLINE void act_layer(const float* const (&w)[kActRows], int64_t outputs, int64_t inputs, const Add& add,
                           const Put& put) {
    for (int64_t i = 0; i < outputs; i += kActOutputs) {
      F part[kActRows];
      for (int r = 0; r < kActRows; ++r) {
        F products[kActOutputs];
        const float* weights[kActOutputs];
        each<kActOutputs>([&](auto j) WM_FLAT {
          weights[j] = w[r] + (i + j < outputs ? i + j : i) * inputs;
          products[j] = set1(0.0f);
        });
        add(r, products, weights);
        part[r] = folded<kActOutputs>(products);
      }
      float sums[kWidth];
      store(sums, folded<kActRows>(part));
      for (int r = 0; r < kActRows; ++r)
        for (int64_t j = 0; j < kActOutputs && i + j < outputs; ++j)
          put(r, i + j, sums[r + j * kActRows] + w[r][outputs * inputs + i + j]);
    }
  }

  // The controllers: features to actions, in the rows' states and as they are multiplied.
  void act(int64_t live) {
    const wm::Controller& c = job_.controller;
    const int64_t actions = model_.action, units = c.hidden_units;
    for (int64_t first = 0; first < live; first += kActRows) {
      int64_t row[kActRows];
      const float* w[kActRows];
      for (int r = 0; r < kActRows; ++r) {
        row[r] = first + r < live ? first + r : first;
        w[r] = plan_.params + tile_.candidate[row[r]] * c.size;
      }
      const auto features = [&](int r, auto& sums, auto& weights) WM_FLAT {
        add_products(sums, weights, state(0, row[r]), model_.latent);
        if (c.use_h) add_products(sums, weights, hidden(0, row[r]), model_.hidden);
        if (c.use_c) add_products(sums, weights, tile_.cell + row[r] * layout_.cell_row, model_.hidden);
      };
      const auto act_as = [&](int r, int64_t i, float x) WM_FLAT {
        tile_.actions[i * tile_.action_row + first + r] = x;
      };
      if (units == 0) {
        act_layer(w, actions, c.features, features, act_as);
        continue;
      }
      const auto layer = [&](int r) WM_FLAT { return tile_.layer + r * layout_.layer_row; };
      act_layer(w, units, c.features, features, [&](int r, int64_t i, float x) WM_FLAT { layer(r)[i] = x; });
      for (int64_t i = 0; i < kActRows * layout_.layer_row; i += kWidth)
        store(tile_.layer + i, hyperbolic_tangent(load(tile_.layer + i)));
      for (int r = 0; r < kActRows; ++r) w[r] += units * (c.features + 1);
      const auto hidden_units = [&](int r, auto& sums, auto& weights) WM_FLAT {
        add_products(sums, weights, layer(r), units);
      };
      act_layer(w, actions, units, hidden_units, act_as);
    }
    for (int64_t first = 0; first < live; first += kWidth) squash(first, live - first < kWidth ? live - first : kWidth);
    for (int64_t row = 0; row < live; ++row) {
      const float* action = tile_.actions + row;
      float* a = state(0, row) + model_.latent;
      for (int64_t i = 0; i < actions; ++i) a[i] = action[i * tile_.action_row];
      if (c.argmax) one_hot(a, actions);
      keep_input(row);
    }
  }

  // A vector of rows' actions in place; a row with one that is not finite is marked.
  void squash(int64_t first, int64_t rows) {
    const wm::Controller& c = job_.controller;
    float finite[kWidth];
    F check = set1(0.0f);
    for (int64_t i = 0; i < model_.action; ++i) {
      float* action = tile_.actions + i * tile_.action_row + first;
      const F x = load(action);
      check = fma(x, set1(0.0f), check);
      if (!c.argmax) store(action, squashed(c.squash[i], x));
    }
    store(finite, check);
    for (int64_t r = 0; r < rows; ++r)
      if (finite[r] != 0.0f) tile_.bad[first + r] = true;
  }

  static void one_hot(float* a, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; ++i)
      if (a[i] > a[best]) best = i;
    for (int64_t i = 0; i < n; ++i) a[i] = i == best ? 1.0f : 0.0f;
  }

  // [z, a] as they are multiplied.
  void keep_input(int64_t row) {
    if constexpr (Mode::kCopies) {
      In* in = tile_.in + row * tile_.in_row;
      const int64_t n = model_.latent + model_.action;
      convert(state(0, row), in, n);
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
    if constexpr (Mode::kTiles)
      Amx<Mode>::gates(model_, live, in, in_row, operand(0, 0), operand_row(), tile_.unit[now_], tile_.cell,
                       layout_.cell_row, hidden(1, 0), layout_.state_row);
    else
      for (int64_t block = 0; block < model_.unit_blocks; ++block) gates_block(live, block, in, in_row);
    for (int64_t row = 0; row < live; ++row) {
      // What pads h would be NaN where an input is infinite, and is multiplied by weights of 0.
      for (int64_t i = model_.hidden; i < layout_.cell_row; ++i) hidden(1, row)[i] = 0.0f;
      keep_hidden(1, row);
    }
  }

  void gates_block(int64_t live, int64_t block, const In* in, int64_t in_row) {
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

  // Reward, end and, where one choice is made for all dimensions, its logits.
  void control(int64_t live) {
    const wm::Pairs& m = model_.control;
    for (int64_t pair = 0; pair < m.count; ++pair) {
      const float* const weights[1] = {pair_weights<float>(m, pair * pair_vectors_of(m))};
      for (int64_t first = 0; first < live; first += kPairRows) {
        const float* h[kPairRows];
        for (int r = 0; r < kPairRows; ++r) h[r] = hidden(1, first + r < live ? first + r : first);
        F sum[kWidth];
        multiply_pairs<float>(sum, h, weights, m.depth_vectors);
        float both[kWidth];
        store(both, folded<kWidth>(sum));
        for (int r = 0; r < kPairRows && first + r < live; ++r)
          for (int i = 0; i < 2; ++i)
            tile_.control[(first + r) * layout_.control_row + 2 * pair + i] = both[2 * r + i];
      }
    }
  }

  // The step's uniforms, and its normals where z' will be.
  void noise(int64_t live) {
    if (!noisy_) return;
    const int64_t n = layout_.blocks;
    for (int64_t row = 0; row < live; ++row) {
      const U step = set1(static_cast<uint32_t>(tile_.step[row]));
      const U episode = set1(static_cast<uint32_t>(tile_.episode[row]));
      const uint32_t candidate = plan_.first_candidate + static_cast<uint32_t>(tile_.candidate[row]);
      const U who = set1(plan_.common_random_numbers ? 0 : candidate);
      for (int64_t i = row * n; i < (row + 1) * n; i += kWidth) {
        store_bits(tile_.block_step + i, step);
        store_bits(tile_.block_episode + i, episode);
        store_bits(tile_.block_candidate + i, who);
      }
    }
    for (int64_t i = 0; i < live * n; i += kWidth)
      uniforms(load(tile_.block + i), load(tile_.block_step + i), load(tile_.block_episode + i),
               load(tile_.block_candidate + i), plan_.key0, plan_.key1, tile_.u_first + 2 * i, tile_.u_second + 2 * i);
    for (int64_t row = 0; row < live; ++row)
      step_normals(first_uniforms(row), tile_.u_second + 2 * row * n, model_.latent, state(1, row));
  }
  const float* first_uniforms(int64_t row) const { return tile_.u_first + 2 * row * layout_.blocks; }

  // Exact shortcut: the component is chosen first, and only its means and deviations are computed, the rows taken
  // component by component.
  void draw_shared(int64_t live) {
    for (int64_t row = 0; row < live; ++row)
      tile_.chosen[row] = choose(tile_.control + row * layout_.control_row + 2, model_.mixtures,
                                 first_uniforms(row)[2 * layout_.choice_at], temperature_, tile_.logits);
    lap(wm::Phase::draw, live);
    for (int64_t k = 0; k < model_.mixtures; ++k) {
      int64_t n = 0;
      for (int64_t row = 0; row < live; ++row)
        if (tile_.chosen[row] == k) tile_.order[n++] = row;
      multiply_head(model_.mixture[k], n, [this](int64_t i) { return tile_.order[i]; });
    }
    lap(wm::Phase::mixture, live);
    for (int64_t row = 0; row < live; ++row) {
      const float* head = tile_.head + row * layout_.head_row;
      for (int64_t block = 0; block < model_.latent_blocks; ++block, head += 2 * kWidth)
        draw_block(row, block, load(head), load(head + kWidth));
    }
  }

  // The same shortcut where every dimension has a choice of its own: logits of all, then of every rollout and dimension
  // the chosen mean and deviation alone, as dot products. The rows of a group of dimensions follow each other, so that
  // the group's components stay close.
  void draw_per_dim(int64_t live) {
    const int64_t mixtures = model_.mixtures, latent = model_.latent;
    multiply_head(model_.mixture[0], live, [](int64_t i) { return i; });
    lap(wm::Phase::mixture, live);
    for (int64_t row = 0; row < live; ++row)
      for (int64_t block = 0; block < model_.latent_blocks; ++block) {
        const float* second_uniforms = tile_.u_second + 2 * row * layout_.blocks;
        const F u = choice_uniforms(first_uniforms(row), second_uniforms, layout_.choice_at, block);
        float* logits = tile_.head + row * layout_.head_row + block * mixtures * kWidth;
        store_bits(chosen_dims(row, block), float_to_whole(choose_per_dim(logits, mixtures, u, temperature_)));
      }
    lap(wm::Phase::draw, live);
    for (int64_t block = 0; block < model_.latent_blocks; ++block)
      for (int64_t group = 0; group < kGroups && block * kWidth + group < latent; ++group)
        multiply_chosen(live, block, group);
    lap(wm::Phase::mixture, live);
    for (int64_t row = 0; row < live; ++row)
      for (int64_t block = 0; block < model_.latent_blocks; ++block)
        draw_block(row, block, chosen_part(row, block, 0), chosen_part(row, block, 1));
  }

  // All columns of one matrix of the head, for n rows.
  template <class RowOf>
  void multiply_head(const Matrix& m, int64_t n, const RowOf& row_of) {
    const Hid* h = operand(1, 0);
    const int64_t h_row = operand_row();
    if constexpr (Mode::kTiles) {
      if (!model_.per_dim) {  // a tile's rows lie at even distances
        for (int64_t i = 0; i < n; ++i)
          __builtin_memcpy(tile_.gathered + i * h_row, h + row_of(i) * h_row, static_cast<size_t>(h_row) * sizeof(Hid));
        h = tile_.gathered;
      }
      Amx<Mode>::multiply(m, model_.hidden, n, row_of, h, h_row, tile_.unit[now_ ^ 1], tile_.head, layout_.head_row);
    } else {
      multiply<Mode>(m, model_.hidden, n, row_of, h, h_row, tile_.unit[now_ ^ 1], tile_.head, layout_.head_row);
    }
  }

  uint32_t* chosen_dims(int64_t row, int64_t block) {
    return tile_.chosen_dims + row * layout_.chosen_row + block * kWidth;
  }
  // The vectors of all groups of one part, 0 the means and 1 the log deviations.
  typename Dot<Hid>::Sum* partial(int64_t row, int64_t block, int64_t part) {
    return tile_.partial + row * layout_.partial_row + (2 * block + part) * kGroups;
  }

  // The chosen components of one group of dimensions, for all rows. In the place of a dimension beyond Z stands the
  // group's first one; nobody reads its sums.
  void multiply_chosen(int64_t live, int64_t block, int64_t group) {
    const wm::Pairs& m = model_.components;
    const int64_t depth_vectors = m.depth_vectors, pair_vectors = pair_vectors_of(m);
    const int64_t first_dim = block * kWidth + group;
    const int64_t h_row = operand_row(), chosen_row = layout_.chosen_row, partial_row = layout_.partial_row;
    const typename Dot<Hid>::Weight* components[kGroupDims];
    int64_t lane[kGroupDims];
    each<kGroupDims>([&](auto i) WM_FLAT {
      lane[i] = first_dim + i * kGroups < model_.latent ? i * kGroups : 0;
      components[i] = pair_weights<Hid>(m, (first_dim + lane[i]) * model_.mixtures * pair_vectors);
    });
    const uint32_t* chosen = chosen_dims(0, block) + group;
    const Hid* h = operand(1, 0);
    typename Dot<Hid>::Sum* out = partial(0, block, 0) + group;
    for (int64_t row = 0; row < live; ++row, chosen += chosen_row, h += h_row, out += partial_row) {
      const typename Dot<Hid>::Weight* weights[kGroupDims];
      each<kGroupDims>([&](auto i) WM_FLAT {
        weights[i] = components[i] + chosen[lane[i]] * pair_vectors * kWidth * Dot<Hid>::kTogether;
      });
      const Hid* const x[1] = {h};
      typename Dot<Hid>::Sum sum[2 * kGroupDims];
      multiply_pairs<Hid>(sum, x, weights, depth_vectors);
      each<2>([&](auto part) WM_FLAT { out[part * kGroups] = folded<kGroupDims, 2>(sum + part); });
    }
  }

  F chosen_part(int64_t row, int64_t block, int64_t part) {
    const F sum = to_float(folded<kGroups>(partial(row, block, part)));
    if constexpr (!Mode::kQuantised) return sum;
    const int64_t mixtures = model_.mixtures, at = (block * mixtures * 2 + part) * kWidth;
    const F chosen = whole_to_float(load(chosen_dims(row, block)));
    return fma(sum, set1(tile_.unit[now_ ^ 1][row]) * pick(model_.component_scale + at, 2 * kWidth, mixtures, chosen),
               pick(model_.component_bias + at, 2 * kWidth, mixtures, chosen));
  }

  void draw_block(int64_t row, int64_t block, F mean, F log_std) {
    float* out = state(1, row) + block * kWidth;
    store(out, temperature_.zero ? mean : draw(mean, log_std, load(out), temperature_.root));
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
      threshold = first_uniforms(row)[2 * layout_.done_at];
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

// Calls body(a Mode), that in which the model is kept. Each is compiled only where the level can come to it.
template <class Body>
inline void with_mode(const wm::Model& m, const Body& body) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
  if (m.quantised) return body(Int8());
  if (m.hidden_element == Element::bf16) return body(Bf16());
#elif defined(__AVX512VNNI__)
  if (m.quantised) return body(Int8FloatInput());
  if (m.rounded) return body(Bf16AsFloat());
#else
  if (m.quantised) return body(Int8AsFloat());
  if (m.rounded) return body(Bf16AsFloat());
#endif
  body(Fp32());
}

void rollout(const Job& job, const Hooks& hooks, void* scratch, int64_t rows) {
  with_mode(job.model, [&](auto mode) {
    Arena arena{static_cast<char*>(scratch), 0};
    Dream<decltype(mode)>(job, arena, rows).run(hooks, rows);
  });
}

size_t scratch_bytes(const Job& job, int64_t rows) {
  Arena arena{nullptr, 0};
  with_mode(job.model, [&](auto mode) { Tile<decltype(mode)>(arena, job, layout_of(job), rows); });
  return arena.used;
}

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

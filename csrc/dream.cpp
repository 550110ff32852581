#include "dream.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "profile.h"
#include "threads.h"

namespace wm {
namespace {

constexpr int64_t kGroup = 4;

// Rows of a tile: enough to amortise streaming the weights from a shared cache, few enough to stay in a core's own.
constexpr int64_t kTileRows = 48;

int64_t blocks_of(int64_t n, int64_t width) { return (n + width - 1) / width; }

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float round_bf16(float x) {
  const uint32_t bits = static_cast<uint32_t>(to_bf16(x)) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

Squash squash_of(const std::string& word) {
  if (word == "tanh") return Squash::tanh;
  if (word == "sigmoid") return Squash::sigmoid;
  if (word == "tanh01") return Squash::tanh01;
  if (word == "relu_tanh") return Squash::relu_tanh;
  if (word == "identity") return Squash::identity;
  throw std::invalid_argument(
      "squash must be made of 'tanh', 'sigmoid', 'tanh01', 'relu_tanh' and 'identity', or be 'argmax' alone, but held '" +
      word + "'");
}

// The hand-out of lanes to the threads of one call.
struct Call {
  std::atomic<int64_t> next{0}, register_tiles{0};
  int64_t lanes;
  Stop* stop;
};
struct Worker {
  Call* call;
  bool polls;
#if defined(WM_PROFILE)
  LapBook* laps;
#endif
};

#if defined(WM_PROFILE)
void lap(void* context, Phase phase, int64_t rows, int64_t began, int64_t ended) {
  static_cast<Worker*>(context)->laps->lap(phase, rows, began, ended);
}
#endif

int64_t next_lane(void* context) {
  Call& call = *static_cast<Worker*>(context)->call;
  const int64_t lane = call.next.fetch_add(1, std::memory_order_relaxed);
  return lane < call.lanes ? lane : -1;
}

bool stopped(void* context) {
  const Worker& worker = *static_cast<Worker*>(context);
  return worker.call->stop->requested(worker.polls);
}

void worked(void* context, int64_t register_tiles) {
  static_cast<Worker*>(context)->call->register_tiles.fetch_add(register_tiles, std::memory_order_relaxed);
}

}  // namespace

template <class T>
T* Engine::allocate(int64_t n) {
  buffers_.push_back(std::make_unique<Buffer>(static_cast<size_t>(n) * sizeof(T)));
  packed_bytes_ += n * static_cast<int64_t>(sizeof(T));
  return static_cast<T*>(buffers_.back()->data());
}

Matrix Engine::pack(const float* weight, int64_t stride, int64_t depth, const std::vector<int64_t>& rows,
                    const std::vector<float>& bias, Element element, bool quantised, bool rounded) {
  const int64_t width = level_.width, columns = static_cast<int64_t>(rows.size()), vectors = columns / width;
  const int64_t together = element == Element::f32 ? 1 : element == Element::bf16 ? 2 : 4;
  const int64_t padded = blocks_of(depth, together) * together;

  Matrix m{};
  m.vectors = vectors;
  if (!bias.empty()) {
    float* to = allocate<float>(columns);
    std::copy(bias.begin(), bias.end(), to);
    m.bias = to;
  }
  float* scale = nullptr;
  if (quantised) {
    scale = allocate<float>(columns);
    for (int64_t column = 0; column < columns; ++column) {
      float most = 0;
      if (rows[static_cast<size_t>(column)] >= 0)
        for (int64_t k = 0; k < depth; ++k)
          most = std::max(most, std::fabs(weight[rows[static_cast<size_t>(column)] * stride + k]));
      scale[column] = most > 1e-30f ? most / 127.0f : 1.0f;
    }
    m.scale = scale;
  }
  int32_t* offset = nullptr;
  if (element == Element::int8) m.offset = offset = allocate<int32_t>(columns);

  const auto value = [&](int64_t column, int64_t k) {
    const int64_t row = rows[static_cast<size_t>(column)];
    if (row < 0 || k >= depth) return 0.0f;
    float x = weight[row * stride + k];
    if (quantised) return std::nearbyint(x / scale[column]);
    return rounded ? round_bf16(x) : x;
  };

  float* floats = nullptr;
  uint16_t* halves = nullptr;
  int8_t* bytes = nullptr;
  if (element == Element::f32) m.weights = floats = allocate<float>(columns * padded);
  if (element == Element::bf16) m.weights = halves = allocate<uint16_t>(columns * padded);
  if (element == Element::int8) m.weights = bytes = allocate<int8_t>(columns * padded);
  for (int64_t group = 0; group * kGroup < vectors; ++group) {
    const int64_t in_group = std::min(kGroup, vectors - group * kGroup) * width;
    for (int64_t k = 0; k < padded; ++k)
      for (int64_t i = 0; i < in_group; ++i) {
        const int64_t column = group * kGroup * width + i;
        const int64_t at =
            group * kGroup * width * padded + (k / together * in_group + i) * together + k % together;
        const float x = value(column, k);
        if (floats) floats[at] = x;
        if (halves) halves[at] = to_bf16(x);
        if (bytes) {
          bytes[at] = static_cast<int8_t>(x);
          offset[column] -= 128 * static_cast<int32_t>(bytes[at]);
        }
      }
  }
  return m;
}

Engine::Engine(const Weights& w, const std::string& features, const std::vector<std::string>& squash,
               int64_t hidden_units, Precision precision, const Level& level)
    : level_(level) {
  const int64_t width = level.width, Z = w.latent, A = w.action, H = w.hidden, K = w.mixtures;
  Model& m = model_;
  m.latent = Z;
  m.action = A;
  m.hidden = H;
  m.mixtures = K;
  m.per_dim = w.per_dim;
  m.quantised = precision == Precision::int8;
  m.input_element = m.hidden_element = Element::f32;
  if (precision == Precision::bf16 && level.dot_bf16) m.input_element = m.hidden_element = Element::bf16;
  if (precision == Precision::int8 && level.dot_int8) {
    m.input_element = level.dot_bf16 ? Element::bf16 : Element::f32;
    m.hidden_element = Element::int8;
  }
  m.rounded = precision != Precision::fp32 && m.input_element == Element::f32;
  m.unit_blocks = blocks_of(H, width);
  m.latent_blocks = blocks_of(Z, width);

  std::vector<int64_t> rows;
  std::vector<float> bias;
  for (int64_t block = 0; block < m.unit_blocks; ++block)
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t unit = block * width; unit < (block + 1) * width; ++unit) {
        const int64_t row = unit < H ? gate * H + unit : -1;
        rows.push_back(row);
        bias.push_back(row < 0 ? 0.0f : w.bias_ih[row] + w.bias_hh[row]);
      }
  m.gates_input = pack(w.weight_ih, Z + A, Z + A, rows, {}, m.input_element, false, m.rounded);
  m.gates_hidden = pack(w.weight_hh, H, H, rows, bias, m.hidden_element, m.quantised, m.rounded);

  const auto pack_head = [&](const std::vector<int64_t>& head_rows, Element element, bool quantised, bool rounded) {
    std::vector<float> head_bias;
    for (int64_t row : head_rows) head_bias.push_back(row < 0 ? 0.0f : w.head_bias[row]);
    return pack(w.head_weight, H, H, head_rows, head_bias, element, quantised, rounded);
  };
  // Reward and the end decide what a dream is worth and cost next to nothing: float32 in every precision.
  std::vector<int64_t> control{w.head_rows() - 2, w.head_rows() - 1};
  if (!w.per_dim)
    for (int64_t k = 0; k < K; ++k) control.push_back(k);
  control.resize(static_cast<size_t>(blocks_of(static_cast<int64_t>(control.size()), width) * width), -1);
  m.control = pack_head(control, Element::f32, false, false);

  // Rows of the head: logits, means, log deviations. A dimension beyond Z has no row.
  for (int64_t k = 0; k < (w.per_dim ? 1 : K); ++k) {
    rows.clear();
    for (int64_t block = 0; block < m.latent_blocks; ++block)
      for (int64_t part = 0; part < (w.per_dim ? 3 * K : 2); ++part)
        for (int64_t d = block * width; d < (block + 1) * width; ++d) {
          if (d >= Z)
            rows.push_back(-1);
          else if (w.per_dim)
            rows.push_back(part / K * Z * K + d * K + part % K);
          else
            rows.push_back(K + part * K * Z + k * Z + d);
        }
    mixture_.push_back(pack_head(rows, m.hidden_element, m.quantised, m.rounded));
  }
  m.mixture = mixture_.data();

  Controller& c = controller_;
  if (features != "z" && features != "zh" && features != "zhc")
    throw std::invalid_argument("features must be 'z', 'zh' or 'zhc', but was '" + features + "'");
  c.use_h = features.size() > 1;
  c.use_c = features.size() > 2;
  c.features = Z + (c.use_h ? H : 0) + (c.use_c ? H : 0);
  c.hidden_units = hidden_units;
  c.size = hidden_units > 0 ? hidden_units * (c.features + 1) + A * (hidden_units + 1) : A * (c.features + 1);
  c.argmax = squash.size() == 1 && squash[0] == "argmax";
  if (!c.argmax) {
    if (static_cast<int64_t>(squash.size()) != A)
      throw std::invalid_argument("squash must have one word for each of the " + std::to_string(A) +
                                  " actions (or be 'argmax'), but had " + std::to_string(squash.size()));
    for (const std::string& word : squash) squash_.push_back(squash_of(word));
  }
  c.squash = squash_.data();
}

Work Engine::rollout(const Plan& plan, int threads, const std::function<bool()>& interrupted) const {
  const int64_t lanes = plan.candidates * plan.episodes;
  const int64_t tiles = blocks_of(lanes, level_.rows);
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, tiles));
  // As many rounds as tiles of the largest size would take, and those as even as they can be.
  const int64_t rounds = blocks_of(lanes, workers * kTileRows);
  const int64_t rows = blocks_of(lanes, workers * rounds);

  const Job job{model_, controller_, plan};
  const size_t bytes = level_.scratch_bytes(job, rows);
  Stop stop(interrupted);
  Call call;
  call.lanes = lanes;
  call.stop = &stop;
  run_threads(static_cast<int>(workers), stop, [&](int thread) {
    const Buffer scratch(bytes);
#if defined(WM_PROFILE)
    LapBook laps(thread);
    Worker worker{&call, thread == 0, &laps};
    const Hooks hooks{&worker, next_lane, stopped, worked, lap};
#else
    Worker worker{&call, thread == 0};
    const Hooks hooks{&worker, next_lane, stopped, worked};
#endif
    level_.rollout(job, hooks, scratch.data(), rows);
  });
  return {!stop.stopped(), call.register_tiles.load() * level_.rows, workers * rows,
          workers * static_cast<int64_t>(bytes)};
}

}  // namespace wm

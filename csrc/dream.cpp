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
  std::atomic<int64_t> next{0}, row_steps{0};
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

void worked(void* context, int64_t row_steps) {
  static_cast<Worker*>(context)->call->row_steps.fetch_add(row_steps, std::memory_order_relaxed);
}

}  // namespace

template <class T>
T* Engine::allocate(int64_t n) {
  buffers_.push_back(std::make_unique<Buffer>(static_cast<size_t>(n) * sizeof(T)));
  packed_bytes_ += n * static_cast<int64_t>(sizeof(T));
  return static_cast<T*>(buffers_.back()->data());
}

// The rows of a weight matrix [N, depth] that are packed, as they are kept: rounded, or divided by their own scale.
class Engine::Rows {
 public:
  // `taken` are the rows of `weight`, -1 for one of zeros.
  Rows(const float* weight, int64_t depth, const std::vector<int64_t>& taken, const Form& form)
      : weight_(weight), depth_(depth), taken_(taken), form_(form), scale_(taken.size(), 1.0f) {
    for (size_t row = 0; row < taken.size() && form.quantised; ++row) {
      float most = 0;
      for (int64_t k = 0; k < depth && taken[row] >= 0; ++k)
        most = std::max(most, std::fabs(weight[taken[row] * depth + k]));
      if (most > 1e-30f) scale_[row] = most / 127.0f;
    }
  }
  // The size of one unit of each quantised row.
  const std::vector<float>& scale() const { return scale_; }
  float value(int64_t row, int64_t k) const {
    const int64_t from = taken_[static_cast<size_t>(row)];
    if (from < 0 || k >= depth_) return 0.0f;
    const float x = weight_[from * depth_ + k];
    if (form_.quantised) return std::nearbyint(x / scale_[static_cast<size_t>(row)]);
    return form_.rounded ? round_bf16(x) : x;
  }
  // What corrects the int8 dot products of a row: their other operand is shifted by 128, to be without a sign.
  int32_t offset(int64_t row) const {
    int32_t sum = 0;
    for (int64_t k = 0; k < depth_; ++k) sum += static_cast<int32_t>(value(row, k));
    return -128 * sum;
  }

 private:
  const float* weight_;
  int64_t depth_;
  const std::vector<int64_t>& taken_;
  Form form_;
  std::vector<float> scale_;
};

namespace {

int64_t together_of(Element element) { return element == Element::f32 ? 1 : element == Element::bf16 ? 2 : 4; }

void put(void* weights, Element element, int64_t at, float x) {
  if (element == Element::f32) static_cast<float*>(weights)[at] = x;
  if (element == Element::bf16) static_cast<uint16_t*>(weights)[at] = to_bf16(x);
  if (element == Element::int8) static_cast<int8_t*>(weights)[at] = static_cast<int8_t>(x);
}

}  // namespace

// Room for whole vectors of an element: all are of as many bytes.
void* Engine::allocate_vectors(int64_t n) { return allocate<float>(n * level_.width); }

const float* Engine::keep(const std::vector<float>& values) {
  float* to = allocate<float>(static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), to);
  return to;
}

Matrix Engine::pack(const float* weight, int64_t depth, const std::vector<int64_t>& taken,
                    const std::vector<float>& bias, const Form& form) {
  const int64_t columns = static_cast<int64_t>(taken.size()), together = together_of(form.element);
  const int64_t step = form.element == Element::f32 ? 1 : together * level_.depth_steps;
  const int64_t padded = blocks_of(depth, step) * step;
  const Rows rows(weight, depth, taken, form);

  Matrix m{};
  m.vectors = columns / level_.width;
  if (!bias.empty()) m.bias = keep(bias);
  if (form.quantised) m.scale = keep(rows.scale());
  if (form.element == Element::int8) {
    int32_t* offset = allocate<int32_t>(columns);
    for (int64_t column = 0; column < columns; ++column) offset[column] = rows.offset(column);
    m.offset = offset;
  }
  void* weights = allocate_vectors(m.vectors * padded / together);
  for (int64_t group = 0; group * kGroup < m.vectors; ++group) {
    const int64_t first = group * kGroup * level_.width;
    const int64_t in_group = std::min(kGroup * level_.width, columns - first);
    for (int64_t k = 0; k < padded; ++k)
      for (int64_t i = 0; i < in_group; ++i)
        put(weights, form.element, first * padded + (k / together * in_group + i) * together + k % together,
            rows.value(first + i, k));
  }
  m.weights = weights;
  return m;
}

Pairs Engine::pack_pairs(const float* weight, int64_t depth, const std::vector<int64_t>& taken,
                         const std::vector<float>& bias, const Form& form) {
  const int64_t vector = level_.width * together_of(form.element);
  const Rows rows(weight, depth, taken, form);

  Pairs m{};
  m.count = static_cast<int64_t>(taken.size()) / 2;
  m.depth_vectors = blocks_of(depth, vector);
  void* weights = allocate_vectors(m.count * 2 * (1 + m.depth_vectors));
  for (int64_t row = 0; row < 2 * m.count; ++row) {
    const int64_t start = row / 2 * 2 * (1 + m.depth_vectors) + row % 2;  // in vectors
    float* sums = static_cast<float*>(weights) + start * level_.width;
    std::fill_n(sums, level_.width, 0.0f);
    if (form.element == Element::int8) {
      const int32_t offset = rows.offset(row);
      std::memcpy(sums, &offset, sizeof offset);
    } else if (!form.quantised) {
      sums[0] = bias[static_cast<size_t>(row)];
    }
    for (int64_t k = 0; k < m.depth_vectors * vector; ++k)
      put(weights, form.element, (start + 2 * (1 + k / vector)) * vector + k % vector, rows.value(row, k));
  }
  m.weights = weights;
  return m;
}

// Values of pairs d K + k, [Z, K, 2], as vectors of dimensions: [latent_blocks][K][2][width].
std::vector<float> Engine::by_dims(const std::vector<float>& values) const {
  const int64_t mixtures = model_.mixtures;
  std::vector<float> vectors;
  for (int64_t block = 0; block < model_.latent_blocks; ++block)
    for (int64_t row = 0; row < 2 * mixtures; ++row)
      for (int64_t d = block * level_.width; d < (block + 1) * level_.width; ++d)
        vectors.push_back(d < model_.latent ? values[static_cast<size_t>(d * 2 * mixtures + row)] : 0.0f);
  return vectors;
}

// Reward, end, logits and the mixture's components; what is not of float32 in every precision is kept in `form`.
void Engine::pack_head(const Weights& w, const Form& form) {
  const int64_t width = level_.width, Z = w.latent, H = w.hidden, K = w.mixtures;
  Model& m = model_;
  const auto biases = [&](const std::vector<int64_t>& of) {
    std::vector<float> values;
    for (int64_t row : of) values.push_back(row < 0 ? 0.0f : w.head_bias[row]);
    return values;
  };
  // Reward and the end decide what a dream is worth and cost next to nothing: float32 in every precision.
  std::vector<int64_t> reward_end{w.head_rows() - 2, w.head_rows() - 1};
  if (!w.per_dim)
    for (int64_t k = 0; k < K; ++k) reward_end.push_back(k);
  if (reward_end.size() % 2) reward_end.push_back(-1);
  m.reward_end = pack_pairs(w.head_weight, H, reward_end, biases(reward_end), Form{Element::f32, false, false});

  std::vector<int64_t> rows;
  // The rows of the head of a vector of dimensions; a dimension beyond Z has none.
  const auto add_dims = [&](int64_t block, int64_t first, int64_t of_dim) {
    for (int64_t d = block * width; d < (block + 1) * width; ++d) rows.push_back(d < Z ? first + d * of_dim : -1);
  };
  const auto pack_mixture = [&] { mixture_.push_back(pack(w.head_weight, H, rows, biases(rows), form)); };
  if (w.per_dim) {
    for (int64_t block = 0; block < m.latent_blocks; ++block)
      for (int64_t k = 0; k < K; ++k) add_dims(block, k, K);
    pack_mixture();
    rows.clear();
    for (int64_t pair = 0; pair < Z * K; ++pair)
      for (int64_t part : {1, 2}) rows.push_back(part * Z * K + pair);
    m.components = pack_pairs(w.head_weight, H, rows, biases(rows), form);
    if (m.quantised) {
      m.component_scale = keep(by_dims(Rows(w.head_weight, H, rows, form).scale()));
      m.component_bias = keep(by_dims(biases(rows)));
    }
  } else {
    for (int64_t k = 0; k < K; ++k) {
      rows.clear();
      for (int64_t block = 0; block < m.latent_blocks; ++block)
        for (int64_t part : {0, 1}) add_dims(block, K + (part * K + k) * Z, 1);
      pack_mixture();
    }
  }
  m.mixture = mixture_.data();
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
  m.residual = w.residual;
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
  const Form input{m.input_element, false, m.rounded}, hidden{m.hidden_element, m.quantised, m.rounded};
  m.gates_input = pack(w.weight_ih, Z + A, rows, {}, input);
  m.gates_hidden = pack(w.weight_hh, H, rows, bias, hidden);
  pack_head(w, hidden);

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
  return {!stop.stopped(), call.row_steps.load(), workers * rows, workers * static_cast<int64_t>(bytes)};
}

}  // namespace wm

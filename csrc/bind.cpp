// wm_engine._C: checks what Python hands over, lets go of the GIL, and hands arrays back. Nothing is computed here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bind.h"
#include "dream.h"
#include "isa.h"
#include "profile.h"
#include "threads.h"

namespace py = pybind11;

namespace wm {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + (shape[i] < 0 ? "N" : std::to_string(shape[i]));
  return text + "]";
}

py::array array_of(const char* name, const py::object& object, const char* dtype, const std::vector<int64_t>& shape,
                   int64_t least) {
  const bool is_array = py::isinstance<py::array>(object);
  const std::string type = is_array ? std::string(py::str(object.attr("dtype")))
                                    : std::string(py::str(py::type::of(object).attr("__name__")));
  if (!is_array || type != dtype)  // a byte order that is not the machine's has another name
    throw py::type_error(std::string(name) + " must be a " + dtype + " array of shape " + shape_text(shape) +
                         ", but was " + type);
  const py::array array = py::reinterpret_borrow<py::array>(object);
  const std::vector<int64_t> was(array.shape(), array.shape() + array.ndim());
  bool fits = was.size() == shape.size();
  for (size_t i = 0; fits && i < was.size(); ++i) fits = shape[i] < 0 ? was[i] >= least : was[i] == shape[i];
  if (!fits)
    throw py::value_error(std::string(name) + " must have shape " + shape_text(shape) + ", but had " + shape_text(was));
  return array;
}

int64_t size_between(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw py::value_error(std::string(name) + " must be from " + std::to_string(least) + " to " + std::to_string(most) +
                          ", but was " + std::to_string(value));
  return value;
}

float temperature_of(double value) {
  if (!(value >= 0) || !std::isfinite(value))
    throw py::value_error("temperature must be finite and at least 0, but was " + std::to_string(value));
  if (value > static_cast<double>(std::numeric_limits<float>::max()))
    throw py::value_error("temperature must be at most 3.4028235e+38, but was " + std::to_string(value));
  return static_cast<float>(value);
}

}  // namespace wm

namespace {

using Floats = py::array_t<float, py::array::c_style>;

// A C-contiguous float32 array of the given shape (-1: any size from 1); TypeError or ValueError otherwise.
Floats floats(const char* name, const py::object& object, const std::vector<int64_t>& shape) {
  const Floats contiguous = Floats::ensure(wm::array_of(name, object, "float32", shape));  // copies other strides
  if (!contiguous) throw py::error_already_set();
  return contiguous;
}

// The same, of finite numbers alone: no int8 stands for another.
Floats weights(const char* name, const py::object& object, const std::vector<int64_t>& shape) {
  const Floats array = floats(name, object, shape);
  if (!std::all_of(array.data(), array.data() + array.size(), [](float x) { return std::isfinite(x); }))
    throw py::value_error(std::string(name) + " must be finite");
  return array;
}

class Dream {
 public:
  Dream(int64_t latent, int64_t action, int64_t hidden, int64_t mixtures, const std::string& mixture,
        const py::object& weight_ih, const py::object& weight_hh, const py::object& bias_ih, const py::object& bias_hh,
        const py::object& head_weight, const py::object& head_bias, const std::string& features,
        const py::object& squash, int64_t hidden_units, const std::string& precision, const std::string& isa,
        bool residual) {
    wm::Weights w{};
    w.latent = wm::size_between("latent", latent, 1, wm::kLargestSize);
    w.action = wm::size_between("action", action, 1, wm::kLargestSize);
    w.hidden = wm::size_between("hidden", hidden, 1, wm::kLargestSize);
    w.mixtures = wm::size_between("mixtures", mixtures, 1, wm::kLargestSize);
    wm::size_between("hidden_units", hidden_units, 0, wm::kLargestSize);
    w.per_dim = wm::choice<bool>("mixture", mixture, {{"shared", false}, {"per_dim", true}});
    w.residual = residual;
    const Floats ih = weights("weight_ih", weight_ih, {4 * hidden, latent + action});
    const Floats hh = weights("weight_hh", weight_hh, {4 * hidden, hidden});
    const Floats bi = weights("bias_ih", bias_ih, {4 * hidden}), bh = weights("bias_hh", bias_hh, {4 * hidden});
    const Floats hw = weights("head_weight", head_weight, {w.head_rows(), hidden});
    const Floats hb = weights("head_bias", head_bias, {w.head_rows()});
    w.weight_ih = ih.data();
    w.weight_hh = hh.data();
    w.bias_ih = bi.data();
    w.bias_hh = bh.data();
    w.head_weight = hw.data();
    w.head_bias = hb.data();
    const auto words = py::isinstance<py::str>(squash) ? std::vector<std::string>{squash.cast<std::string>()}
                                                       : squash.cast<std::vector<std::string>>();
    const auto kind = wm::choice<wm::Precision>(
        "precision", precision,
        {{"fp32", wm::Precision::fp32}, {"bf16", wm::Precision::bf16}, {"int8", wm::Precision::int8}});
    precision_ = precision;
    engine_ = std::make_unique<wm::Engine>(w, features, words, hidden_units, kind, wm::choose_level(isa));
  }

  py::dict rollout(const py::object& params, const py::object& given, const py::object& z0, const py::object& h0,
                   const py::object& c0, int64_t episodes, int64_t max_steps, double temperature, uint64_t seed,
                   const std::string& reward, const std::string& done, bool common_random_numbers,
                   uint64_t first_candidate, int64_t num_threads, bool record, int64_t first_episode,
                   int64_t episode_stride) const {
    const wm::Model& m = engine_->model();
    wm::Plan plan{};
    plan.steps = wm::size_between("max_steps", max_steps, 1, std::numeric_limits<int32_t>::max());
    if (params.is_none() == given.is_none()) throw py::type_error("exactly one of params and actions must be given");
    const bool opened = params.is_none();
    const Floats controls = opened ? floats("actions", given, {-1, plan.steps, m.action})
                                   : floats("params", params, {-1, engine_->params_size()});
    const Floats z = floats("z", z0, {-1, m.latent});
    plan.candidates = controls.shape(0);
    plan.starts = z.shape(0);
    Floats h, c;
    if (!h0.is_none()) h = floats("h", h0, {plan.starts, m.hidden});
    if (!c0.is_none()) c = floats("c", c0, {plan.starts, m.hidden});
    plan.params = opened ? nullptr : controls.data();
    plan.given = opened ? controls.data() : nullptr;
    plan.z = z.data();
    plan.h = h0.is_none() ? nullptr : h.data();
    plan.c = c0.is_none() ? nullptr : c.data();
    constexpr int64_t kCounters = int64_t{1} << 32;
    plan.episodes = wm::size_between("episodes", episodes, 1, kCounters);
    plan.episode_stride = wm::size_between("episode_stride", episode_stride, 1, kCounters / plan.episodes);
    const int64_t most_first = kCounters - 1 - (plan.episodes - 1) * plan.episode_stride;
    plan.first_episode = wm::size_between("first_episode", first_episode, 0, most_first);
    plan.temperature = wm::temperature_of(temperature);
    plan.key0 = static_cast<uint32_t>(seed);
    plan.key1 = static_cast<uint32_t>(seed >> 32);
    plan.survival = wm::choice<bool>("reward", reward, {{"predicted", false}, {"survival", true}});
    plan.sample_done = wm::choice<bool>("done", done, {{"threshold", false}, {"sample", true}});
    plan.common_random_numbers = common_random_numbers;
    if (first_candidate > (uint64_t{1} << 32) - static_cast<uint64_t>(plan.candidates))
      throw py::value_error("first_candidate + candidates must be at most 2**32, but first_candidate was " +
                            std::to_string(first_candidate));
    plan.first_candidate = static_cast<uint32_t>(first_candidate);
    const int threads = static_cast<int>(wm::size_between("num_threads", num_threads, 1, 4096));

    py::array_t<float> returns({plan.candidates, plan.episodes});
    py::array_t<int32_t> lengths({plan.candidates, plan.episodes});
    plan.returns = returns.mutable_data();
    plan.lengths = lengths.mutable_data();
    py::dict out;
    if (record) {
      // numpy.zeros: pages that no rollout reaches are never touched.
      const auto zeros = py::module_::import("numpy").attr("zeros");
      const auto make = [&](const char* name, const py::tuple& shape) {
        Floats array = zeros(shape, py::dtype::of<float>());
        out[name] = array;
        return array.mutable_data();
      };
      plan.zs = make("z", py::make_tuple(plan.steps, plan.candidates, plan.episodes, m.latent));
      plan.actions = make("actions", py::make_tuple(plan.steps, plan.candidates, plan.episodes, m.action));
      plan.rewards = make("rewards", py::make_tuple(plan.steps, plan.candidates, plan.episodes));
    }
    wm::Work work{};
    {
      const py::gil_scoped_release released;
      work = engine_->rollout(plan, threads, [] {
        const py::gil_scoped_acquire acquired;
        return PyErr_CheckSignals() != 0;
      });
    }
    if (!work.complete) throw py::error_already_set();  // the KeyboardInterrupt that the signal's handler raised

    py::array_t<bool> failed(plan.candidates);
    for (int64_t i = 0; i < plan.candidates; ++i) {
      bool any = false;
      for (int64_t e = 0; e < plan.episodes; ++e) any = any || std::isnan(plan.returns[i * plan.episodes + e]);
      failed.mutable_at(i) = any;
    }
    out["returns"] = returns;
    out["lengths"] = lengths;
    out["failed"] = failed;
    py::dict counted;
    counted["row_steps"] = work.row_steps;
    counted["rows_in_flight"] = work.rows_in_flight;
    counted["scratch_bytes"] = work.scratch_bytes;
    out["work"] = counted;
    return out;
  }

  std::string isa() const { return engine_->level().name; }
  std::string precision() const { return precision_; }
  int64_t packed_bytes() const { return engine_->packed_bytes(); }

 private:
  std::unique_ptr<wm::Engine> engine_;
  std::string precision_;
};

// Philox4x32-10 of counters uint32 [n, 4] under a 64-bit seed: words uint32 [n, 4].
py::array_t<uint32_t> philox(const py::array_t<uint32_t, py::array::c_style>& counters, uint64_t seed,
                             const std::string& isa) {
  if (counters.ndim() != 2 || counters.shape(1) != 4) throw py::value_error("counters must have shape [n, 4]");
  const wm::Level& level = wm::choose_level(isa);
  const int64_t n = counters.shape(0), room = (n + level.width - 1) / level.width * level.width;
  std::vector<uint32_t> in(static_cast<size_t>(4 * room)), out(in.size());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < 4; ++j) in[static_cast<size_t>(j * room + i)] = counters.at(i, j);
  level.philox(in.data(), static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), out.data(), room);
  py::array_t<uint32_t> words({n, int64_t{4}});
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < 4; ++j) words.mutable_at(i, j) = out[static_cast<size_t>(j * room + i)];
  return words;
}

// One of the core's elementary functions over a float32 array [n].
py::array_t<float> map(const std::string& function, const py::object& x, const std::string& isa) {
  using wm::Function;
  const auto which = wm::choice<Function>("function", function,
                                      {{"exp", Function::exp},
                                       {"log", Function::log},
                                       {"tanh", Function::tanh},
                                       {"sigmoid", Function::sigmoid},
                                       {"cos_turn", Function::cos_turn},
                                       {"sin_turn", Function::sin_turn}});
  const Floats in = floats("x", x, {-1});
  py::array_t<float> out(in.shape(0));
  wm::choose_level(isa).map(which, in.data(), out.mutable_data(), in.shape(0));
  return out;
}

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const wm::Level* level : wm::available_levels()) names.emplace_back(level->name);
  return names;
}

#if defined(WM_PROFILE)
// What the phases took since the last call: {"nanoseconds": {phase: int}, "rows": {phase: int}, "first": [(thread,
// phase, rows, began, ended)]}.
py::dict take_laps() {
  const char* const names[wm::kPhases] = {"controller", "gates", "reward_and_end", "mixture", "noise", "draw", "ends"};
  const wm::Laps laps = wm::take_laps();
  py::dict nanoseconds, rows;
  for (int phase = 0; phase < wm::kPhases; ++phase) {
    nanoseconds[names[phase]] = laps.nanoseconds[phase];
    rows[names[phase]] = laps.rows[phase];
  }
  py::list first;
  for (const wm::Lap& lap : laps.first)
    first.append(py::make_tuple(lap.thread, names[static_cast<int>(lap.phase)], lap.rows, lap.began, lap.ended));
  py::dict out;
  out["nanoseconds"] = nanoseconds;
  out["rows"] = rows;
  out["first"] = first;
  return out;
}
#endif

// Multiply-adds on registers alone, on this thread, at a level and precision: how many flops that was (two each), 0
// where the level has no instruction for it. Timed, it is the roof of every matrix product.
int64_t multiply_adds(const std::string& precision, int64_t rounds, const std::string& isa) {
  const wm::Level& level = wm::choose_level(isa);
  const auto peak = wm::choice<wm::Peak>(
      "precision", precision,
      {{"fp32", level.peak_fp32}, {"bf16", level.peak_bf16}, {"int8", level.peak_int8}});
  wm::size_between("rounds", rounds, 0, int64_t{1} << 40);
  if (peak == nullptr) return 0;
  const py::gil_scoped_release released;
  float sink = 0.0f;
  const int64_t flops = peak(rounds, &sink);
  const volatile float kept = sink;
  static_cast<void>(kept);
  return flops;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The C++ core of wm_engine: NumPy arrays in and out. Use it through wm_engine.DreamEngine.";
  py::class_<Dream>(module, "Dream", "M's weights packed for one level and precision, ready to dream.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, const std::string&, const py::object&, const py::object&,
                    const py::object&, const py::object&, const py::object&, const py::object&, const std::string&,
                    const py::object&, int64_t, const std::string&, const std::string&, bool>(),
           py::kw_only(), py::arg("latent"), py::arg("action"), py::arg("hidden"), py::arg("mixtures"),
           py::arg("mixture"), py::arg("weight_ih"), py::arg("weight_hh"), py::arg("bias_ih"), py::arg("bias_hh"),
           py::arg("head_weight"), py::arg("head_bias"), py::arg("features"), py::arg("squash"),
           py::arg("hidden_units") = 0, py::arg("precision") = "fp32", py::arg("isa") = "auto",
           py::arg("residual") = false)
      .def("rollout", &Dream::rollout, py::kw_only(), py::arg("params") = py::none(), py::arg("actions") = py::none(),
           py::arg("z"), py::arg("h") = py::none(),
           py::arg("c") = py::none(), py::arg("episodes"), py::arg("max_steps"), py::arg("temperature") = 1.0,
           py::arg("seed") = 0, py::arg("reward") = "predicted", py::arg("done") = "threshold",
           py::arg("common_random_numbers") = true, py::arg("first_candidate") = 0, py::arg("num_threads") = 1,
           py::arg("record") = false, py::arg("first_episode") = 0, py::arg("episode_stride") = 1,
           "Dream params [P, D], or actions [P, max_steps, A] in their place, from starts z [N, Z], h, c [N, H]: a dict of "
           "returns [P, E], lengths [P, E], failed [P], work (row_steps, rows_in_flight, scratch_bytes: wm::Work in "
           "dream.h) and, recorded, z [T, P, E, Z], actions [T, P, E, A], rewards [T, P, E].")
      .def_property_readonly("isa", &Dream::isa)
      .def_property_readonly("precision", &Dream::precision)
      .def_property_readonly("packed_bytes", &Dream::packed_bytes);
  module.def("philox", &philox, py::arg("counters"), py::arg("seed"), py::arg("isa") = "auto");
  module.def("map", &map, py::arg("function"), py::arg("x"), py::arg("isa") = "auto");
  module.def("isa_levels", &isa_levels, "Instruction-set levels that this processor runs, slowest first.");
  module.def("isa_levels_not_compiled", &wm::levels_not_compiled, "Levels that the compiler could not make.");
  module.def("has_amx", &wm::has_amx, "Whether this processor has AMX's tiles.");
  module.def("chosen_isa", [] { return std::string(wm::choose_level("auto").name); });
  module.def("compiler", &compiler);
  module.def("multiply_adds", &multiply_adds, py::arg("precision"), py::arg("rounds"), py::arg("isa") = "auto",
             "Multiply-adds on registers alone: how many flops it did; 0 where the level has no such instruction.");
  wm::bind_mdn(module);
#if defined(WM_PROFILE)
  module.def("take_laps", &take_laps, "Time by phase since the last call; in builds with WM_PROFILE only.");
#endif
}

// The mixture's operations for NumPy arrays, which torch's tensors are without a copy, whatever their strides.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bind.h"
#include "isa.h"
#include "mdn_ops.h"

namespace wm {
namespace {

namespace py = pybind11;

// Up to three strides of a float32 array, in floats.
View view(const char* name, const py::array& array) {
  int64_t strides[3] = {0, 0, 0};
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    constexpr auto size = static_cast<py::ssize_t>(sizeof(float));
    if (array.strides(i) % size != 0)
      throw py::value_error(std::string(name) + " must have strides of whole floats, but had one of " +
                            std::to_string(array.strides(i)) + " bytes");
    strides[i] = array.strides(i) / size;
  }
  return {static_cast<const float*>(array.data()), strides[0], strides[1], strides[2]};
}

View floats(const char* name, const py::object& object, const std::vector<int64_t>& shape) {
  return view(name, array_of(name, object, "float32", shape, 0));
}

// Where an output goes: a C-contiguous, writable array.
float* output(const char* name, const py::object& object, const std::vector<int64_t>& shape) {
  py::array array = array_of(name, object, "float32", shape, 0);
  if (!(array.flags() & py::array::c_style) || !array.writeable())
    throw py::value_error(std::string(name) + " must be C-contiguous and writable");
  return static_cast<float*>(array.mutable_data());
}

// Sizes and inputs of all three operations.
Heads heads_of(const py::object& logits, const py::object& means, const py::object& log_stds) {
  Heads heads{};
  const py::array m = array_of("means", means, "float32", {-1, -1, -1}, 0);
  heads.rows = m.shape(0);
  heads.latent = size_between("means.shape[1]", m.shape(1), 1, kLargestSize);
  heads.mixtures = size_between("means.shape[2]", m.shape(2), 1, kLargestSize);
  heads.means = view("means", m);
  heads.log_stds = floats("log_stds", log_stds, {heads.rows, heads.latent, heads.mixtures});
  const py::array choices = array_of("logits", logits, "float32", {heads.rows, -1, heads.mixtures}, 0);
  heads.per_dim = choices.shape(1) == heads.latent;
  if (!heads.per_dim && choices.shape(1) != 1)
    throw py::value_error("logits must have shape " + shape_text({heads.rows, 1, heads.mixtures}) + " or " +
                          shape_text({heads.rows, heads.latent, heads.mixtures}) + ", but had " +
                          shape_text({heads.rows, choices.shape(1), heads.mixtures}));
  heads.logits = view("logits", choices);
  return heads;
}

void run(HeadTask task, const Heads& heads, int64_t num_threads, const std::string& isa) {
  const Level& level = choose_level(isa);
  const int threads = static_cast<int>(size_between("num_threads", num_threads, 1, 4096));
  const py::gil_scoped_release released;
  run_heads(level, task, heads, threads);
}

void mdn_nll(const py::object& logits, const py::object& means, const py::object& log_stds, const py::object& target,
             const py::object& out, int64_t num_threads, const std::string& isa) {
  Heads heads = heads_of(logits, means, log_stds);
  heads.target = floats("target", target, {heads.rows, heads.latent});
  heads.nll = output("out", out, {heads.rows});
  run(HeadTask::nll, heads, num_threads, isa);
}

void mdn_nll_backward(const py::object& grad, const py::object& logits, const py::object& means,
                      const py::object& log_stds, const py::object& target, const py::object& to_logits,
                      const py::object& to_means, const py::object& to_log_stds, const py::object& to_target,
                      int64_t num_threads, const std::string& isa) {
  Heads heads = heads_of(logits, means, log_stds);
  const int64_t B = heads.rows, Z = heads.latent, K = heads.mixtures;
  heads.grad = floats("grad", grad, {B});
  heads.target = floats("target", target, {B, Z});
  heads.to_logits = output("to_logits", to_logits, {B, heads.per_dim ? Z : 1, K});
  heads.to_means = output("to_means", to_means, {B, Z, K});
  heads.to_log_stds = output("to_log_stds", to_log_stds, {B, Z, K});
  heads.to_target = output("to_target", to_target, {B, Z});
  run(HeadTask::gradients, heads, num_threads, isa);
}

void mdn_sample(const py::object& logits, const py::object& means, const py::object& log_stds,
                const py::object& counters, uint64_t seed, double temperature, const py::object& out,
                int64_t num_threads, const std::string& isa) {
  Heads heads = heads_of(logits, means, log_stds);
  const py::array words = array_of("counters", counters, "int64", {heads.rows, 3}, 0);
  const auto contiguous = py::array_t<int64_t, py::array::c_style>::ensure(words);
  if (!contiguous) throw py::error_already_set();
  heads.counters = contiguous.data();
  heads.key0 = static_cast<uint32_t>(seed);
  heads.key1 = static_cast<uint32_t>(seed >> 32);
  heads.temperature = temperature_of(temperature);
  heads.z = output("out", out, {heads.rows, heads.latent});
  run(HeadTask::draw, heads, num_threads, isa);
}

}  // namespace

void bind_mdn(py::module_& module) {
  module.def("mdn_nll", &mdn_nll, py::arg("logits"), py::arg("means"), py::arg("log_stds"), py::arg("target"),
             py::arg("out"), py::kw_only(), py::arg("num_threads"), py::arg("isa") = "auto",
             "Nats a dimension of target [B, Z] under heads of logits [B, 1 or Z, K], means and log_stds [B, Z, K], "
             "into out [B]. All float32; any strides but out's.");
  module.def("mdn_nll_backward", &mdn_nll_backward, py::arg("grad"), py::arg("logits"), py::arg("means"),
             py::arg("log_stds"), py::arg("target"), py::arg("to_logits"), py::arg("to_means"), py::arg("to_log_stds"),
             py::arg("to_target"), py::kw_only(), py::arg("num_threads"), py::arg("isa") = "auto",
             "The gradients of mdn_nll for grad [B] of its output, into arrays of the inputs' shapes.");
  module.def("mdn_sample", &mdn_sample, py::arg("logits"), py::arg("means"), py::arg("log_stds"), py::arg("counters"),
             py::arg("seed"), py::arg("temperature"), py::arg("out"), py::kw_only(), py::arg("num_threads"),
             py::arg("isa") = "auto",
             "Draws from the heads into out [B, Z], with the random-number contract's numbers of counters int64 "
             "[B, 3]: step, episode, candidate.");
}

}  // namespace wm

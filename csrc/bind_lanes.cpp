// Lanes that are stepped from outside, in NumPy's arrays: checks, and nothing is computed here.
#include <limits>

#include "bind.h"
#include "dream.h"

namespace py = pybind11;

namespace wm {
namespace {

// The memory of an array that is read, or written, in place.
template <class T>
T* in_place(const char* name, const py::object& object, const char* dtype, const std::vector<int64_t>& shape) {
  py::array array = array_of(name, object, dtype, shape);
  if (!(array.flags() & py::array::c_style)) throw py::value_error(std::string(name) + " must be contiguous");
  if (!array.writeable()) throw py::value_error(std::string(name) + " must be writeable");
  return static_cast<T*>(array.mutable_data());
}

Lanes state_of(const Engine& engine, const py::object& z, const py::object& h, const py::object& c) {
  const Model& m = engine.model();
  Lanes lanes{};
  lanes.z = in_place<float>("z", z, "float32", {-1, m.latent});
  lanes.count = py::len(z);
  lanes.h = in_place<float>("h", h, "float32", {lanes.count, m.hidden});
  lanes.c = in_place<float>("c", c, "float32", {lanes.count, m.hidden});
  return lanes;
}

void run(const Engine& engine, LaneTask task, const Plan& plan, const Lanes& lanes, int64_t num_threads) {
  const int threads = static_cast<int>(size_between("num_threads", num_threads, 1, 4096));
  const py::gil_scoped_release released;
  engine.lanes(task, plan, lanes, threads);
}

}  // namespace

py::tuple step_lanes(const Engine& engine, const py::object& z, const py::object& h, const py::object& c,
                     const py::object& actions, const py::object& episode, const py::object& step, double temperature,
                     uint64_t seed, const std::string& reward, const std::string& done, int64_t num_threads) {
  Lanes lanes = state_of(engine, z, h, c);
  lanes.actions = in_place<float>("actions", actions, "float32", {lanes.count, engine.model().action});
  lanes.episode = in_place<uint32_t>("episode", episode, "uint32", {lanes.count});
  lanes.step = in_place<uint32_t>("step", step, "uint32", {lanes.count});
  py::array_t<float> rewards(lanes.count);
  py::array_t<bool> ended(lanes.count), failed(lanes.count);
  lanes.reward = rewards.mutable_data();
  lanes.ended = ended.mutable_data();
  lanes.failed = failed.mutable_data();
  Plan plan{};
  plan.temperature = temperature_of(temperature);
  plan.key0 = static_cast<uint32_t>(seed);
  plan.key1 = static_cast<uint32_t>(seed >> 32);
  plan.survival = choice<bool>("reward", reward, {{"predicted", false}, {"survival", true}});
  plan.sample_done = choice<bool>("done", done, {{"threshold", false}, {"sample", true}});
  plan.common_random_numbers = true;
  run(engine, LaneTask::step, plan, lanes, num_threads);
  return py::make_tuple(rewards, ended, failed);
}

py::array_t<float> act_on_lanes(const Engine& engine, const py::object& params, const py::object& z,
                                const py::object& h, const py::object& c, int64_t num_threads) {
  Lanes lanes = state_of(engine, z, h, c);
  Plan plan{};
  plan.params = in_place<float>("params", params, "float32", {-1, engine.params_size()});
  plan.candidates = static_cast<int64_t>(py::len(params));
  if (lanes.count % plan.candidates)
    throw py::value_error("z must hold as many lanes for each of the " + std::to_string(plan.candidates) +
                          " controllers, but held " + std::to_string(lanes.count));
  py::array_t<float> actions({lanes.count, engine.model().action});
  lanes.actions = actions.mutable_data();
  run(engine, LaneTask::act, plan, lanes, num_threads);
  return actions;
}

}  // namespace wm

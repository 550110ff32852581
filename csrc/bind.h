// What the bindings share: checks that name the argument, what it was and what it should be.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace wm {

// Far above any real model, and small enough that no product of sizes leaves 64 bits.
constexpr int64_t kLargestSize = 1 << 16;

// A shape in words; a size below 0 stands for any.
std::string shape_text(const std::vector<int64_t>& shape);

// `object` as an array of the dtype called `dtype` with the given shape (-1: any size from `least`), any strides;
// TypeError or ValueError otherwise.
pybind11::array array_of(const char* name, const pybind11::object& object, const char* dtype,
                         const std::vector<int64_t>& shape, int64_t least = 1);

// `value`; ValueError unless it is from `least` to `most`.
int64_t size_between(const char* name, int64_t value, int64_t least, int64_t most);

// The float32 of a finite temperature of at least 0; ValueError otherwise.
float temperature_of(double value);

// What `value` stands for among `choices`; ValueError if it is none of them.
template <class T>
T choice(const char* name, const std::string& value, const std::vector<std::pair<std::string, T>>& choices) {
  std::string names;
  for (const auto& [word, result] : choices) {
    if (word == value) return result;
    names += (names.empty() ? "'" : ", '") + word + "'";
  }
  throw pybind11::value_error(std::string(name) + " must be one of " + names + ", but was '" + value + "'");
}

class Engine;

// A step of lanes, in place: z [B, Z], h, c [B, H] under actions [B, A], with words episode and step uint32 [B]. Returns
// (reward float32 [B], ended bool [B], failed bool [B]).
pybind11::tuple step_lanes(const Engine& engine, const pybind11::object& z, const pybind11::object& h,
                           const pybind11::object& c, const pybind11::object& actions, const pybind11::object& episode,
                           const pybind11::object& step, double temperature, uint64_t seed, const std::string& reward,
                           const std::string& done, int64_t num_threads);

// The actions [B, A] of controllers params [P, D], each on B / P of the lanes z [B, Z], h, c [B, H], in order.
pybind11::array_t<float> act_on_lanes(const Engine& engine, const pybind11::object& params, const pybind11::object& z,
                                      const pybind11::object& h, const pybind11::object& c, int64_t num_threads);

// Adds the mixture's operations to the module.
void bind_mdn(pybind11::module_& module);

}  // namespace wm

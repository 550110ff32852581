#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace wm {

std::vector<const Level*> available_levels() {
  std::vector<const Level*> levels{&level_scalar};
#if defined(WM_X86)
  // The compiler's probe looks at CPUID and at what the operating system saves (XGETBV).
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) levels.push_back(&level_avx2);
  if (avx512) levels.push_back(&level_avx512);
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
    levels.push_back(&level_avx512_bf16);
#endif
#if defined(WM_NEON)
  levels.push_back(&level_neon);
#endif
  return levels;
}

const Level& choose_level(const std::string& name) {
  const std::vector<const Level*> levels = available_levels();
  std::string wanted = name, source = "isa";
  if (wanted == "auto") {
    const char* forced = std::getenv("WM_ENGINE_ISA");
    if (forced == nullptr || *forced == '\0') return *levels.back();
    wanted = forced;
    source = "WM_ENGINE_ISA";
  }
  std::string names;
  for (const Level* level : levels) {
    if (wanted == level->name) return *level;
    names += (names.empty() ? "'" : ", '") + std::string(level->name) + "'";
  }
  throw std::invalid_argument(source + " must be a level that this processor runs (" + names + "), but was '" + wanted +
                              "'");
}

}  // namespace wm

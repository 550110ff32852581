#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#if defined(WM_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace wm {
namespace {

#if defined(WM_LEVEL_AMX)
// Whether this process may use the tiles for bf16 and int8. Linux lets it from when it has asked (arch_prctl(2), since
// 5.16): signal frames are 8 KB larger from then on.
bool amx_granted() {
#if defined(WM_AMX_EMULATED)
  return true;
#elif defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool all = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1u) != 0 && (d >> 25 & 1u) != 0;
  return all && has_amx() && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<const Level*> available_levels() {
  std::vector<const Level*> levels{&level_scalar};
#if defined(WM_X86)
  // The compiler's probe looks at CPUID and at what the operating system saves (XGETBV).
  __builtin_cpu_init();
#endif
#if defined(WM_LEVEL_AVX2)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) levels.push_back(&level_avx2);
#endif
#if defined(WM_LEVEL_AVX512)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) levels.push_back(&level_avx512);
#endif
#if defined(WM_LEVEL_AVX512_VNNI)
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni) levels.push_back(&level_avx512_vnni);
#endif
#if defined(WM_LEVEL_AVX512_BF16)
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (bf16) levels.push_back(&level_avx512_bf16);
#endif
#if defined(WM_LEVEL_AMX)
  static const bool granted = bf16 && amx_granted();
  if (granted) levels.push_back(&level_amx);
#endif
#if defined(WM_LEVEL_NEON)
  levels.push_back(&level_neon);
#endif
  return levels;
}

std::vector<std::string> levels_not_compiled() {
  std::vector<std::string> names;
#if defined(WM_X86) && !defined(WM_LEVEL_AVX2)
  names.emplace_back("avx2");
#endif
#if defined(WM_X86) && !defined(WM_LEVEL_AVX512)
  names.emplace_back("avx512");
#endif
#if defined(WM_X86) && !defined(WM_LEVEL_AVX512_VNNI)
  names.emplace_back("avx512_vnni");
#endif
#if defined(WM_X86) && !defined(WM_LEVEL_AVX512_BF16)
  names.emplace_back("avx512_bf16");
#endif
#if defined(WM_X86) && !defined(WM_LEVEL_AMX)
  names.emplace_back("amx");
#endif
  return names;
}

bool has_amx() {
#if defined(WM_X86)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1u) != 0;
#else
  return false;
#endif
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

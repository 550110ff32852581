#include "buffer.h"

#include <cstring>
#include <new>

namespace wm {
namespace {

constexpr std::align_val_t kLine{64};

}  // namespace

Buffer::Buffer(size_t bytes) : data_(::operator new(bytes ? bytes : 1, kLine)) { std::memset(data_, 0, bytes); }
Buffer::~Buffer() { ::operator delete(data_, kLine); }

}  // namespace wm

// Memory of the driver's own.
#pragma once

#include <cstddef>

namespace wm {

// Memory aligned to a cache line, zeroed.
class Buffer {
 public:
  explicit Buffer(size_t bytes);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace wm

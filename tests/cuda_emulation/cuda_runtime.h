// Just enough of CUDA to run the kernels of csrc/cuda on a CPU, compiled by any C++17 compiler. One block runs at a
// time and its threads are fibers, resumed in an order that changes with every launch: a missing barrier shows as a
// result that depends on the order. Shared memory is filled with NaN before each block and guarded behind its end.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
extern uint64_t exchanged[kMaxThreads];  // what each thread offers to its warp

void run_grid(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
void wait_for_block();
void wait_for_warp();

template <typename T>
T shuffle(T value, int source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x - lane;
  std::memcpy(&exchanged[threadIdx.x], &value, sizeof(T));
  wait_for_warp();
  T result = value;
  if (source_lane >= 0 && source_lane < kWarp) std::memcpy(&result, &exchanged[warp + source_lane], sizeof(T));
  wait_for_warp();
  return result;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::shuffle(value, lane);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::shuffle(value, static_cast<int>(threadIdx.x % emulation::kWarp) ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta) {
  return emulation::shuffle(value, static_cast<int>(threadIdx.x % emulation::kWarp) + delta);
}

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  emulation::run_grid(*config, [&] { kernel(arguments...); });
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}

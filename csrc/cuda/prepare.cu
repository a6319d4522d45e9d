// uint8 images to normalised network input: colour matrix, counter-based noise and normalisation in one pass.
#include "../noise.h"
#include "common.cuh"

namespace hpe {
namespace cuda {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPixels = 4;  // of a thread: 12 bytes in, 12 elements out, exactly 3 counters of noise
constexpr int kElements = 3 * kPixels;
constexpr int kTilePixels = kPrepareThreads * kPixels;

// What to do with one picture; the same for a whole block.
struct Picture {
  const float* color;  // [3, 4] or null
  float noise_std;
  uint64_t sample_id, seed;
};

__device__ __forceinline__ void read_pixels(float (&value)[kElements], const uint8_t* bytes, int count, bool aligned) {
  if (aligned) {
#pragma unroll
    for (int word = 0; word < kElements / 4; ++word) {
      const uint32_t four = reinterpret_cast<const uint32_t*>(bytes)[word];
#pragma unroll
      for (int i = 0; i < 4; ++i) value[4 * word + i] = static_cast<float>(four >> (8 * i) & 0xffu);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) value[i] = i < count ? static_cast<float>(bytes[i]) : 0.0f;
}

__device__ __forceinline__ void transform_color(float (&value)[kElements], const float* m /* [3, 4] */) {
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const float r = value[3 * p], g = value[3 * p + 1], b = value[3 * p + 2];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float mixed = m[4 * c] * r + m[4 * c + 1] * g + m[4 * c + 2] * b + m[4 * c + 3];
      value[3 * p + c] = fminf(fmaxf(mixed, 0.0f), 255.0f);
    }
  }
}

// Adds noise to the elements first .. first + 11 of a sample; `first` is a multiple of 12.
__device__ __forceinline__ void add_noise(float (&value)[kElements], const Picture& picture, int64_t first) {
#pragma unroll
  for (int i = 0; i < kElements / 4; ++i) {
    const uint64_t counter = static_cast<uint64_t>(first) / 4 + i;
    float noise[4];
    normals<ScalarOps>(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), picture.sample_id,
                       picture.seed, noise);
#pragma unroll
    for (int k = 0; k < 4; ++k) value[4 * i + k] += picture.noise_std * noise[k];
  }
}

// A block takes a tile of kTilePixels pixels of one picture. Results pass through shared memory, so that they leave in
// consecutive 16-byte stores although a thread owns 12 elements (whole pixels, whole counters of noise).
template <typename T>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(T* __restrict__ out,                     // [B, H, W, 3]
                   const uint8_t* __restrict__ images,      // [B, H, W, 3]
                   const float* __restrict__ color,         // [B, 3, 4] or null
                   const float* __restrict__ noise_std,     // [B] or null
                   const int64_t* __restrict__ sample_ids,  // [B]
                   const Images desc, const unsigned tiles, const bool aligned) {
  constexpr int kVector = 16 / sizeof(T);
  const unsigned block = block_number();
  const int64_t b = block / tiles, pixels = desc.height * desc.width;
  if (b >= desc.batch) return;
  const int64_t first = int64_t{block % tiles} * kTilePixels, start = (b * pixels + first) * 3;
  const int count = static_cast<int>(min(pixels - first, int64_t{kTilePixels})) * 3, mine = threadIdx.x * kElements;
  T* const tile = reinterpret_cast<T*>(shared_memory);  // [kTilePixels, 3]
  if (mine < count) {
    float value[kElements];
    const Picture picture{color ? color + b * 12 : nullptr, noise_std ? noise_std[b] : 0.0f,
                          static_cast<uint64_t>(sample_ids ? sample_ids[b] : 0), desc.seed};
    read_pixels(value, images + start + mine, count - mine, aligned);
    if (picture.color) transform_color(value, picture.color);
#pragma unroll
    for (float& v : value) v *= 1.0f / 255.0f;
    if (picture.noise_std != 0.0f) add_noise(value, picture, first * 3 + mine);
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      Vec<T, 4> four;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        four.v[k] = from_float<T>((value[i + k] - desc.mean[(i + k) % 3]) * desc.inv_std[(i + k) % 3]);
      }
      store(tile + mine + i, four);
    }
  }
  __syncthreads();
  if (aligned) {
    for (int i = threadIdx.x * kVector; i < count; i += kPrepareThreads * kVector) {
      *reinterpret_cast<uint4*>(out + start + i) = *reinterpret_cast<const uint4*>(tile + i);
    }
  } else {
    for (int i = threadIdx.x; i < count; i += kPrepareThreads) out[start + i] = tile[i];
  }
}

template <typename T>
int launch_prepare(void* out, const uint8_t* images, const float* color, const float* noise_std,
                   const int64_t* sample_ids, const Images& desc, void* stream) {
  const int64_t pixels = desc.height * desc.width, tiles = (pixels + kTilePixels - 1) / kTilePixels;
  const uintptr_t bases = reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(images);
  const bool aligned = bases % 16 == 0 && pixels % (sizeof(T) == 2 ? 8 : 4) == 0;  // of every picture, in and out
  return launch(prepare_kernel<T>, desc.batch * tiles, kPrepareThreads, kTilePixels * 3 * sizeof(T), stream,
                static_cast<T*>(out), images, color, noise_std, sample_ids, desc, static_cast<unsigned>(tiles),
                aligned);
}

}  // namespace

int prepare_images(void* out, const uint8_t* images, const float* color, const float* noise_std,
                   const int64_t* sample_ids, Images desc, void* stream) {
  if (desc.batch * desc.height * desc.width == 0) return cudaSuccess;
  switch (desc.dtype) {
    case DType::kFloat32:
      return launch_prepare<float>(out, images, color, noise_std, sample_ids, desc, stream);
    case DType::kFloat16:
      return launch_prepare<__half>(out, images, color, noise_std, sample_ids, desc, stream);
    case DType::kBFloat16:
      return launch_prepare<__nv_bfloat16>(out, images, color, noise_std, sample_ids, desc, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace cuda
}  // namespace hpe

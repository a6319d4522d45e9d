#include "simd.h"
#include "tasks.h"

namespace hpe {
namespace cpu {
namespace HPE_ISA {
namespace {

// A register of interleaved RGB starts at any of three channels, and a register of noise holds whole counters: both
// come out even after twelve registers, which are a strip.
constexpr int kStrip = 12 * kLanes;       // elements
constexpr int kStripBytes = kStrip + 16;  // that may be read from the image for one strip: shuffles load 16 bytes

// Coefficients of one image for the three registers that start at different channels.
struct Coefficients {
  VecF color[3][4];        // of r, g, b and 1, on the 0..255 scale
  VecF scale[3];           // of the value on the 0..255 scale
  VecF offset[3];          // of the output
  VecF noise[3];           // of a standard normal
  uint8_t pattern[3][16];  // byte, from first_byte on, that holds red for a lane; green and blue follow it
  int first_byte[3];
};

void set_channel(Coefficients& k, const PrepareTask& task, int64_t b, int v, int lane) {
  const Images& d = task.desc;
  const int e = v * kLanes + lane, c = e % 3;
  k.scale[v][lane] = d.inv_std[c] / 255.0f;
  k.offset[v][lane] = -d.mean[c] * d.inv_std[c];
  k.noise[v][lane] = task.noise_std ? task.noise_std[b] * d.inv_std[c] : 0.0f;
  for (int i = 0; i < 4; ++i) k.color[v][i][lane] = task.color ? task.color[b * 12 + c * 4 + i] : 0.0f;
  k.first_byte[v] = v * kLanes / 3 * 3;
  k.pattern[v][lane] = static_cast<uint8_t>(e / 3 * 3 - k.first_byte[v]);
}

// Normals of the elements from `element` (a multiple of 4) on.
void draw_noise(int64_t element, uint64_t sample, uint64_t seed, float* out) {
  VecU step;
  for (int lane = 0; lane < kLanes; ++lane) step[lane] = lane % 4 * (kLanes / 4) + lane / 4;  // for store_interleaved
  for (int part = 0; part < 3; ++part) {
    const uint64_t block = static_cast<uint64_t>(element) / 4 + part * kLanes;
    const VecU low = step + static_cast<uint32_t>(block);
    const VecU carry = (VecU)(low < step) & 1u;
    VecF n[4];
    normals<VectorOps>(low, carry + static_cast<uint32_t>(block >> 32), sample, seed, n);
    store_interleaved(out + part * 4 * kLanes, n);
  }
}

template <bool kColor>
HPE_SIMD VecF pixel_value(const Coefficients& k, const uint8_t* pixels, int v) {
  if (!kColor) return load_bytes(pixels + v * kLanes);
  const uint8_t* first = pixels + k.first_byte[v];
  VecF value = mul_add(load_bytes(first, k.pattern[v]), k.color[v][0], k.color[v][3]);
  value = mul_add(load_bytes(first + 1, k.pattern[v]), k.color[v][1], value);
  value = mul_add(load_bytes(first + 2, k.pattern[v]), k.color[v][2], value);
  return clamp(value, 0.0f, 255.0f);
}

template <class T, bool kColor>
HPE_SIMD void strip(const Coefficients& k, const uint8_t* pixels, const float* noise, T* out) {
  for (int r = 0; r < 12; r += 3) {
    for (int v = 0; v < 3; ++v) {
      VecF value = mul_add(pixel_value<kColor>(k, pixels + r * kLanes, v), k.scale[v], k.offset[v]);
      if (noise) value = mul_add(load(noise + (r + v) * kLanes), k.noise[v], value);
      store(out + (r + v) * kLanes, value);
    }
  }
}

template <class T, bool kColor>
void piece(const PrepareTask& task, const Coefficients& k, int64_t b, int64_t begin, int64_t end) {
  const int64_t elements = task.desc.height * task.desc.width * 3;
  const uint8_t* image = task.images + b * elements;
  const uint8_t* readable = task.images + task.desc.batch * elements;
  T* out = static_cast<T*>(task.out) + b * elements;
  float noise[kStrip];
  const bool noisy = task.noise_std && task.noise_std[b] != 0.0f;
  for (int64_t e = begin; e < end; e += kStrip) {
    if (noisy) draw_noise(e, static_cast<uint64_t>(task.sample_ids[b]), task.desc.seed, noise);
    if (e + kStrip <= end && image + e + kStripBytes <= readable) {
      strip<T, kColor>(k, image + e, noisy ? noise : nullptr, out + e);
      continue;
    }
    uint8_t padded[kStripBytes] = {};
    T result[kStrip];
    const int64_t count = end - e < kStrip ? end - e : kStrip;
    memcpy(padded, image + e, count);
    strip<T, kColor>(k, padded, noisy ? noise : nullptr, result);
    memcpy(out + e, result, count * sizeof(T));
  }
}

template <class T>
void prepare(const PrepareTask& task, int64_t first, int64_t last) {
  const int64_t elements = task.desc.height * task.desc.width * 3;
  const int64_t strips = (elements + kStrip - 1) / kStrip;
  for (int64_t item = first; item < last; ++item) {
    const int64_t b = item / task.chunks, chunk = item % task.chunks;
    const int64_t begin = strips * chunk / task.chunks * kStrip;
    const int64_t end = chunk + 1 == task.chunks ? elements : strips * (chunk + 1) / task.chunks * kStrip;
    Coefficients k;
    for (int v = 0; v < 3; ++v) {
      for (int lane = 0; lane < kLanes; ++lane) set_channel(k, task, b, v, lane);
    }
    task.color ? piece<T, true>(task, k, b, begin, end) : piece<T, false>(task, k, b, begin, end);
  }
}

}  // namespace

void prepare_items(const void* pointer, int64_t first, int64_t last, void*) {
  const PrepareTask& task = *static_cast<const PrepareTask*>(pointer);
  switch (task.desc.dtype) {
    case DType::kFloat16:
      return prepare<Half>(task, first, last);
    case DType::kBFloat16:
      return prepare<BFloat16>(task, first, last);
    default:
      return prepare<float>(task, first, last);
  }
}

}  // namespace HPE_ISA
}  // namespace cpu
}  // namespace hpe

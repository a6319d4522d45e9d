// Argmax, score, refinement, flip-test average and the affine back to the image, reading every heatmap once.
#include "common.cuh"

namespace hpe {
namespace cuda {
namespace {

struct Permutation {
  uint8_t joint[kMaxFlipJoints];
};

// Half of the Gaussian that DARK blurs with: OpenCV's standard deviation for the size that mmpose takes from sigma.
struct Blur {
  static constexpr int kMaxRadius = 64;  // decode_heatmaps refuses a sigma that needs more
  int radius;
  float weight[kMaxRadius + 1];
};

template <typename T>
struct Decode {
  float* coords;          // [B, J, 2]
  float* scores;          // [B, J]
  const T* heatmaps;      // [B, J, H, W]
  const T* flipped;       // [B, J, H, W] or null
  const float* to_image;  // [B, 2, 3] or null
  int shift;              // pixels that the flipped-back map moves right
  Refine refine;
  Blur blur;
  float offset, stride_x, stride_y;  // network-input pixels = (heatmap pixels + offset) * stride
};

// The largest value seen, NaN before any (and never replaced by one); a pixel counts only where the value is > 0.
struct Best {
  float score;
  int pixel;
};

__device__ __forceinline__ bool beats(const Best& a, const Best& b) {
  return a.score > b.score || (a.score == b.score && a.pixel < b.pixel) || b.score != b.score;
}

// One joint's map as refinement sees it: the average where there is a flipped map.
template <typename T>
struct Map {
  const T* heatmap;
  const T* flipped;
  int64_t stride;  // between pixels
  int width, shift;

  __device__ __forceinline__ float at(int y, int x) const {
    const float v = to_float(heatmap[(static_cast<int64_t>(y) * width + x) * stride]);
    if (!flipped) return v;
    const int mirrored = width - 1 - max(x - shift, 0);
    return 0.5f * (v + to_float(flipped[(static_cast<int64_t>(y) * width + mirrored) * stride]));
  }
};

// How far a run's mirrored partner is: a run of one map is averaged with the mirrored joint's.
__device__ __forceinline__ int64_t mirrored_run(const View& view, const Part& part, const Permutation& permutation) {
  if (view.runs == 1) return 0;
  const int own = static_cast<int>(static_cast<unsigned>(part.run) % view.runs);
  return (permutation.joint[own] - own) * view.run_stride;
}

// Joint `joint` of those interleaved in a block's run.
template <typename T>
__device__ __forceinline__ Map<T> map_of(const Decode<T>& decode, const View& view, const Part& part, const T* flipped,
                                         int joint, const Permutation& permutation) {
  const T* const partner = flipped ? flipped + (view.runs == 1 ? permutation.joint[joint] : 0) : nullptr;
  return {decode.heatmaps + part.start + joint, partner, view.stride * view.joints, view.width, decode.shift};
}

// Where element i of a thread's vectors finds its mirrored partner: in column `last - max(c + joints_before, 0)`, if
// the vector's first pixel starts at column c. In shared memory, cyclic over the joints as the target's tables are.
struct Mirror {
  int last, joints_before;
};

template <int V>
__device__ __forceinline__ void fill_mirrors(Mirror* mirrors, const View& view, int shift,
                                             const Permutation& permutation) {
  for (int k = threadIdx.x; k < view.joints + V - 1; k += blockDim.x) {
    const int joint = view.runs == 1 ? permutation.joint[k % view.joints] : 0;
    mirrors[k] = {view.row - view.joints + joint, (k / view.joints - shift) * view.joints};
  }
}

// Single reads of the mirrored map, coalesced backwards (NCHW) or within a pixel (NHWC).
template <typename T, int V>
__device__ __forceinline__ void average_flipped(float (&value)[V], const T* flipped, const Mirror* mirrors, int pixel,
                                                int row, const View& view) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int column = mirrors[i].last - max(pixel + mirrors[i].joints_before, 0);
    value[i] = 0.5f * (value[i] + to_float(flipped[offset_of<V>(view, row * view.row + column)]));
  }
}

// Each thread's maxima, one for each element of its vectors, which always belong to the same joints.
template <typename T, int V, bool kFlip>
__device__ __forceinline__ void scan(Best (&best)[V], const Decode<T>& decode, const View& view, const Part& part,
                                     const T* flipped, const Mirror* mirrors) {
  constexpr int kLoads = kFlip ? 2 : kBatch;  // the flipped map's single reads are in flight beside them
  const int joint = first_joint<V>(view);
#pragma unroll
  for (int i = 0; i < V; ++i) best[i] = {NAN, 0};
  Cursor at = first_vector<V>(view, part);
  Vec<T, V> batch[kLoads];
  load_batch(batch, decode.heatmaps, view, part, at);
  while (at.element < part.count) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u, at.advance(view)) {
      if (at.element >= part.count) continue;
      float value[V];
#pragma unroll
      for (int i = 0; i < V; ++i) value[i] = to_float(batch[u].v[i]);
      if (kFlip) average_flipped<T, V>(value, flipped, mirrors + joint, at.column - joint, at.row, view);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (value[i] > fmaxf(best[i].score, 0.0f)) best[i].pixel = at.element;  // of the vector; made a pixel below
        best[i].score = fmaxf(best[i].score, value[i]);                         // skips NaN
      }
    }
    load_batch(batch, decode.heatmaps, view, part, at);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) best[i].pixel = (best[i].pixel + i) / view.joints;
}

// Hands all lanes of a warp the best of joint j among the block's threads; ties go to the smaller pixel.
__device__ __forceinline__ Best warp_best(const float* scores, const int* pixels, int j, int joints, int count) {
  Best best{NAN, 0};
  for (int k = j + static_cast<int>(threadIdx.x % 32) * joints; k < count; k += 32 * joints) {
    const Best other{scores[k], pixels[k]};
    if (beats(other, best)) best = other;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const Best other{__shfl_xor_sync(kAllLanes, best.score, d), __shfl_xor_sync(kAllLanes, best.pixel, d)};
    if (beats(other, best)) best = other;
  }
  return best;
}

__device__ __forceinline__ float quarter(float difference) {
  return difference > 0.0f ? 0.25f : difference < 0.0f ? -0.25f : 0.0f;
}

// The logarithm of the blurred map at (y, x), which takes zeros from beyond the border. All points add in one order:
// where the map is flat, its derivatives are exactly 0.
template <typename T>
__device__ __forceinline__ float log_blurred(const Map<T>& map, const View& view, const Blur& blur, int y, int x) {
  float sum = 0.0f;
  for (int dy = -blur.radius; dy <= blur.radius; ++dy) {
    if (y + dy < 0 || y + dy >= view.height) continue;
    float row = 0.0f;
    for (int dx = -blur.radius; dx <= blur.radius; ++dx) {
      if (x + dx >= 0 && x + dx < view.width) row += blur.weight[abs(dx)] * map.at(y + dy, x + dx);
    }
    sum += blur.weight[abs(dy)] * row;
  }
  return logf(fmaxf(sum, 1e-10f));
}

// DARK (Zhang et al., CVPR 2020) as mmpose computes it: one Newton step on the logarithm of the blurred map. Each of 25
// lanes blurs one of the 5x5 pixels around the maximum.
template <typename T>
__device__ __forceinline__ void refine_dark(float& x, float& y, const Map<T>& map, const View& view, const Blur& blur,
                                            int px, int py) {
  const int lane = threadIdx.x % 32;
  const float mine = lane < 25 ? log_blurred(map, view, blur, py + lane / 5 - 2, px + lane % 5 - 2) : 0.0f;
  const auto at = [&](int dy, int dx) { return __shfl_sync(kAllLanes, mine, 5 * (dy + 2) + dx + 2); };
  const float centre = at(0, 0);
  const float dx = 0.5f * (at(0, 1) - at(0, -1)), dy = 0.5f * (at(1, 0) - at(-1, 0));
  const float dxx = 0.25f * (at(0, 2) - 2.0f * centre + at(0, -2)),
              dyy = 0.25f * (at(2, 0) - 2.0f * centre + at(-2, 0));
  const float dxy = 0.25f * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1));
  const float determinant = dxx * dyy - dxy * dxy;
  if (!(fabsf(determinant) > 0.0f)) return;  // not NaN either
  const float step_x = (dyy * dx - dxy * dy) / determinant, step_y = (dxx * dy - dxy * dx) / determinant;
  if (fmaxf(fabsf(step_x), fabsf(step_y)) <= kDarkReach) x -= step_x, y -= step_y;  // as on the CPU
}

// From the maximum of a joint to its coordinates, by a warp: they re-read only the maximum's surroundings, from the
// cache.
template <typename T>
__device__ __forceinline__ void finish(const Decode<T>& decode, const View& view, const Map<T>& map, const Best& best,
                                       const Part& part, int64_t index) {
  const int px = best.pixel % view.width, py = best.pixel / view.width;
  float x = 0.0f, y = 0.0f;
  if (best.score > 0.0f) {
    const int margin = decode.refine == Refine::kDark ? 2 : 1;
    const bool inside = px > 1 && px < view.width - margin && py > 1 && py < view.height - margin;
    x = static_cast<float>(px), y = static_cast<float>(py);
    if (inside && decode.refine == Refine::kQuarter) {
      x += quarter(map.at(py, px + 1) - map.at(py, px - 1)), y += quarter(map.at(py + 1, px) - map.at(py - 1, px));
    } else if (inside && decode.refine == Refine::kDark) {
      refine_dark(x, y, map, view, decode.blur, px, py);
    }
    x += decode.offset, y += decode.offset;
  }
  x *= decode.stride_x, y *= decode.stride_y;
  if (threadIdx.x % 32 != 0) return;
  if (decode.to_image) {
    const int64_t picture = static_cast<unsigned>(part.run) / view.runs;
    const float* const m = decode.to_image + picture * 6;
    const float u = m[0] * x + m[1] * y + m[2];
    y = m[3] * x + m[4] * y + m[5], x = u;
  }
  decode.scores[index] = best.score;
  decode.coords[2 * index] = x, decode.coords[2 * index + 1] = y;
}

// Puts the threads' maxima where a warp can compare those of one joint: thread * lanes + i belongs to joint
// (thread * lanes + i) % joints. Returns how many there are.
template <int V>
__device__ __forceinline__ int share_maxima(float* scores, int* pixels, Best (&best)[V], const View& view) {
  if (view.joints == 1) {
#pragma unroll
    for (int i = 1; i < V; ++i) {
      if (beats(best[i], best[0])) best[0] = best[i];
    }
  }
  const int worker = threadIdx.x, lanes = view.joints == 1 ? 1 : V;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (worker >= view.workers || i >= lanes) continue;
    scores[worker * lanes + i] = best[i].score, pixels[worker * lanes + i] = best[i].pixel;
  }
  return view.workers * lanes;
}

template <typename T, int V, bool kFlip>
__global__ void __launch_bounds__(kMaxThreads, 2)
    decode_kernel(const Decode<T> decode, const View view, const __grid_constant__ Permutation permutation) {
  const unsigned block = block_number();
  if (block >= view.blocks) return;
  const Part part = part_of(view, block);
  Mirror* const mirrors = reinterpret_cast<Mirror*>(shared_memory);  // [joints + V - 1]
  const T* flipped = nullptr;
  if (kFlip) {
    flipped = decode.flipped + part.start + mirrored_run(view, part, permutation);
    fill_mirrors<V>(mirrors, view, decode.shift, permutation);
    __syncthreads();
  }
  Best best[V];
  scan<T, V, kFlip>(best, decode, view, part, flipped, mirrors);
  float* const scores = shared_memory + (kFlip ? 2 * (view.joints + V - 1) : 0);
  int* const pixels = reinterpret_cast<int*>(scores + view.workers * V);
  const int count = share_maxima(scores, pixels, best, view);
  __syncthreads();
  for (int j = threadIdx.x / 32; j < view.joints; j += blockDim.x / 32) {
    const Best winner = warp_best(scores, pixels, j, view.joints, count);
    const Map<T> map = map_of(decode, view, part, flipped, j, permutation);
    finish(decode, view, map, winner, part, part.run * view.joints + j);
  }
}

Blur make_blur(float sigma) {
  Blur blur{static_cast<int>(fmin(nearbyint(2.5 * sigma), Blur::kMaxRadius)), {}};
  const double deviation = 0.3 * (blur.radius - 1) + 0.8;
  const auto gaussian = [&](int d) { return exp(-d * d / (2.0 * deviation * deviation)); };
  double sum = gaussian(0);
  for (int d = 1; d <= blur.radius; ++d) sum += 2.0 * gaussian(d);
  for (int d = 0; d <= blur.radius; ++d) blur.weight[d] = static_cast<float>(gaussian(d) / sum);
  return blur;
}

template <typename T, int V, bool kFlip>
int launch_decode(const Decode<T>& decode, const Maps& maps, const Permutation& permutation, void* stream) {
  const View view = make_view(maps, V, false, false);
  const int64_t shared = 8 * (int64_t{view.workers} * V + (kFlip ? view.joints + V - 1 : 0));
  return launch(decode_kernel<T, V, kFlip>, view.blocks, view.threads, shared, stream, decode, view, permutation);
}

}  // namespace

int decode_heatmaps(float* coords, float* scores, const void* heatmaps, const void* flipped, const float* to_image,
                    DecodeOptions options, Maps maps, Codec codec, void* stream) {
  if (empty(maps)) return cudaSuccess;
  if (flipped && maps.joints > kMaxFlipJoints) return cudaErrorInvalidValue;
  Permutation permutation{};
  for (int64_t j = 0; flipped && j < maps.joints; ++j) {
    permutation.joint[j] = static_cast<uint8_t>(options.flip_permutation[j]);
  }
  return dispatch(maps, false, {heatmaps}, [&](auto element, auto vector) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    const Decode<T> decode{coords,
                           scores,
                           static_cast<const T*>(heatmaps),
                           static_cast<const T*>(flipped),
                           to_image,
                           options.shift_flipped ? 1 : 0,
                           options.refine,
                           make_blur(codec.sigma),
                           codec.rounding == Rounding::kFloor ? 0.5f : 0.0f,
                           codec.stride_x,
                           codec.stride_y};
    return flipped ? launch_decode<T, V, true>(decode, maps, permutation, stream)
                   : launch_decode<T, V, false>(decode, maps, permutation, stream);
  });
}

}  // namespace cuda
}  // namespace hpe

// Mean squared error between heatmaps and targets that are never stored: loss, gradient, or both in one pass.
#include "common.cuh"

namespace hpe {
namespace cuda {
namespace {

constexpr int kMeanThreads = 512;

template <typename T>
struct Mse {
  float* per_joint;                 // [B, J] or null: no loss wanted
  T* grad;                          // [B, J, H, W] or null: no gradient wanted
  const T* heatmaps;                // [B, J, H, W]
  const float* keypoints;           // [B, J, 2]
  const float* weights;             // [B, J] or null
  const float* grad_out = nullptr;  // [B, J] (grad_out_stride 1), [] (0), or null for 1
  int grad_out_stride = 0;
  float grad_scale = 0.0f;  // gradient = grad_scale * grad_out * w * (p - t)
  float loss_scale = 0.0f;  // per_joint = loss_scale * w * sum of (p - t)^2
};

// Lane 0 has the sum over the warp, added in a fixed order.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(kAllLanes, v, d);
  return v;
}

// The sums of a block's joints from those of its threads: sum[i] belongs to joint (thread * V + i) % joints. A warp
// adds up a joint in a fixed order.
template <int V>
__device__ __forceinline__ void reduce_joints(float* per_joint, float (&sum)[V], const Tables& tables, const View& view,
                                              const Part& part, float scale) {
  if (view.joints == 1) {
#pragma unroll
    for (int i = 1; i < V; ++i) sum[0] += sum[i];
  }
  const int worker = threadIdx.x, lanes = view.joints == 1 ? 1 : V;
  float* const sums = tables.across;  // [workers * lanes], over the tables
  __syncthreads();
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (worker < view.workers && i < lanes) sums[worker * lanes + i] = sum[i];
  }
  __syncthreads();
  const int lane = worker % 32, warps = blockDim.x / 32;
  for (int j = worker / 32; j < view.joints; j += warps) {
    float total = 0.0f;
    for (int k = j + lane * view.joints; k < view.workers * lanes; k += 32 * view.joints) total += sums[k];
    total = warp_sum(total);
    if (lane == 0) per_joint[part.run * view.joints + j] = total * (scale * tables.weight[j]);
  }
}

// What the gradient multiplies (p - t) by. The lane that stored a joint's weight reads it back.
template <typename T>
__device__ __forceinline__ void fill_factors(const Tables& tables, const Mse<T>& mse, const View& view,
                                             const Part& part) {
  if (threadIdx.x % 32 != 0) return;
  for (int j = threadIdx.x / 32; j < view.joints; j += blockDim.x / 32) {
    float factor = tables.weight[j] * mse.grad_scale;
    if (mse.grad_out) factor *= mse.grad_out[(part.run * view.joints + j) * mse.grad_out_stride];
    for (int k = j; k < tables.pitch; k += view.joints) tables.factor[k] = factor;
  }
}

template <typename T, int V>
__device__ __forceinline__ void store_gradient(T* grad, const float (&difference)[V], const float* factor) {
  Vec<T, V> out;
#pragma unroll
  for (int i = 0; i < V; ++i) out.v[i] = from_float<T>(factor[i] * difference[i]);
  store(grad, out);
}

// Reads heatmaps once; writes the gradient once if it is wanted. A NaN loses nothing: it reaches the loss.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads, 2) mse_kernel(const Mse<T> mse, const View view, const Codec codec) {
  const Tables tables = tables_of<V>(view);
  const int joint = first_joint<V>(view);
  const float* const factor = tables.factor + joint;
  const unsigned block = block_number();
  if (block >= view.blocks) return;
  const Part part = part_of(view, block);
  Cursor at = first_vector<V>(view, part);
  Vec<T, V> batch[kBatch];
  load_batch(batch, mse.heatmaps, view, part, at);  // under way while the tables are computed
  fill_tables<V>(tables, view, part, mse.keypoints, mse.weights, codec);
  if (mse.grad) fill_factors(tables, mse, view, part);
  __syncthreads();
  float sum[V] = {};
  while (at.element < part.count) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u, at.advance(view)) {
      if (at.element >= part.count) continue;
      const Vec<float, V> across = load<V>(tables.across + at.column);
      const float* const down = tables.down + at.row * tables.pitch + joint;
      float difference[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        difference[i] = to_float(batch[u].v[i]) - across.v[i] * down[i];
        sum[i] += difference[i] * difference[i];
      }
      if (mse.grad) store_gradient<T, V>(mse.grad + part.start + offset_of<V>(view, at.element), difference, factor);
    }
    load_batch(batch, mse.heatmaps, view, part, at);
  }
  if (mse.per_joint) reduce_joints(mse.per_joint, sum, tables, view, part, mse.loss_scale);
}

// The second pass: one block, so that the order of the additions never changes.
__global__ void __launch_bounds__(kMeanThreads)
    mean_kernel(float* __restrict__ mean, const float* __restrict__ values /* [count] */, const int64_t count) {
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kMeanThreads) sum += values[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) shared_memory[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = warp_sum(threadIdx.x < kMeanThreads / 32 ? shared_memory[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) *mean = sum / static_cast<float>(count);
}

// `mse` without element type; the loss is the mean of per_joint.
int launch_mse(const Mse<void>& mse, void* loss, const Maps& maps, const Codec& codec, void* stream) {
  const int error = dispatch(maps, true, {mse.heatmaps, mse.grad}, [&](auto element, auto vector) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    const Mse<T> typed{mse.per_joint,
                       static_cast<T*>(mse.grad),
                       static_cast<const T*>(mse.heatmaps),
                       mse.keypoints,
                       mse.weights,
                       mse.grad_out,
                       mse.grad_out_stride,
                       mse.grad_scale,
                       mse.loss_scale};
    const View view = make_view(maps, V, true, mse.per_joint == nullptr);
    const int64_t sums = rounded_up(view.joints, 4) + int64_t{view.workers} * V;
    return launch(mse_kernel<T, V>, view.blocks, view.threads, 4 * max(table_floats(view, V), sums), stream, typed,
                  view, codec);
  });
  if (error != cudaSuccess || !loss) return error;
  return launch(mean_kernel, 1, kMeanThreads, kMeanThreads / 32 * 4, stream, static_cast<float*>(loss),
                static_cast<const float*>(mse.per_joint), maps.batch * maps.joints);
}

double pixels(const Maps& maps) { return static_cast<double>(maps.height) * static_cast<double>(maps.width); }

double elements(const Maps& maps) { return static_cast<double>(maps.batch * maps.joints) * pixels(maps); }

}  // namespace

int heatmap_mse(void* per_joint, void* loss, const void* heatmaps, const float* keypoints, const float* weights,
                Maps maps, Codec codec, void* stream) {
  if (empty(maps)) return cudaSuccess;
  Mse<void> mse{static_cast<float*>(per_joint), nullptr, heatmaps, keypoints, weights};
  mse.loss_scale = static_cast<float>(1.0 / pixels(maps));
  return launch_mse(mse, loss, maps, codec, stream);
}

int heatmap_mse_backward(void* grad, const void* grad_out, const void* heatmaps, const float* keypoints,
                         const float* weights, bool per_joint, Maps maps, Codec codec, void* stream) {
  if (empty(maps)) return cudaSuccess;
  Mse<void> mse{nullptr, grad, heatmaps, keypoints, weights, static_cast<const float*>(grad_out)};
  mse.grad_out_stride = per_joint ? 1 : 0;
  mse.grad_scale = static_cast<float>(2.0 / (per_joint ? pixels(maps) : elements(maps)));
  return launch_mse(mse, nullptr, maps, codec, stream);
}

int heatmap_mse_and_grad(void* per_joint, void* loss, void* grad, const void* heatmaps, const float* keypoints,
                         const float* weights, float grad_scale, Maps maps, Codec codec, void* stream) {
  if (empty(maps)) return cudaSuccess;
  Mse<void> mse{static_cast<float*>(per_joint), grad, heatmaps, keypoints, weights};
  mse.grad_scale = static_cast<float>(2.0 * grad_scale / elements(maps));
  mse.loss_scale = static_cast<float>(1.0 / pixels(maps));
  return launch_mse(mse, loss, maps, codec, stream);
}

}  // namespace cuda
}  // namespace hpe

// Target heatmaps: written once, nothing read but the keypoints.
#include "common.cuh"

namespace hpe {
namespace cuda {
namespace {

template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads, 2) render_kernel(T* __restrict__ heatmaps,             // [B, J, H, W]
                                                                const float* __restrict__ keypoints,  // [B, J, 2]
                                                                const float* __restrict__ weights,    // [B, J] or null
                                                                const View view, const Codec codec) {
  const Tables tables = tables_of<V>(view);
  const int joint = first_joint<V>(view);
  const unsigned block = block_number();
  if (block >= view.blocks) return;
  const Part part = part_of(view, block);
  fill_tables<V>(tables, view, part, keypoints, weights, codec);
  __syncthreads();
  for (Cursor at = first_vector<V>(view, part); at.element < part.count; at.advance(view)) {
    const Vec<float, V> across = load<V>(tables.across + at.column);
    const float* const down = tables.down + at.row * tables.pitch + joint;
    Vec<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) out.v[i] = from_float<T>(across.v[i] * down[i]);
    store(heatmaps + part.start + offset_of<V>(view, at.element), out);
  }
}

}  // namespace

int render_heatmaps(void* heatmaps, const float* keypoints, const float* weights, Maps maps, Codec codec,
                    void* stream) {
  if (empty(maps)) return cudaSuccess;
  return dispatch(maps, true, {heatmaps}, [&](auto element, auto vector) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    const View view = make_view(maps, V, true, true);
    return launch(render_kernel<T, V>, view.blocks, view.threads, 4 * table_floats(view, V), stream,
                  static_cast<T*>(heatmaps), keypoints, weights, view, codec);
  });
}

}  // namespace cuda
}  // namespace hpe

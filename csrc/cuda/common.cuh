// What every kernel shares: element types, 16-byte vectors, launches, and how blocks divide heatmaps among themselves.
//
// Both memory formats are one case. [B, J, H, W] in NCHW is B*J runs of H rows of W elements; in NHWC it is B runs of H
// rows of W*J elements, the maps of a picture interleaved. A block owns a run (or some of its rows) and walks it flat,
// 16 bytes a thread. The threads' common step is a multiple of the interleaved joints, so that a thread meets the same
// joints in every vector it reads: sums and maxima stay in registers and nothing is ever transposed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <initializer_list>
#include <type_traits>

#include "../kernels.h"
#include "../target.h"

namespace hpe {
namespace cuda {

constexpr int kMaxThreads = 448;             // with up to 72 registers, two blocks on every architecture
constexpr int64_t kMostJoints = 256;         // interleaved in one block; fewer than its threads
constexpr int kBatch = 4;                    // vectors in flight per thread: 64 bytes hide the memory's latency
constexpr unsigned kGridWidth = 1 << 14;     // blocks beyond it go to further rows of the grid
constexpr int64_t kMaxShared = 64 << 10;     // bytes; what a block may have from sm_75 on
constexpr int64_t kMaxElements = 1ll << 30;  // of a run, so that positions in it fit an int
constexpr unsigned kAllLanes = 0xffffffffu;

extern __shared__ __align__(16) float shared_memory[];

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(v);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(v);
  if constexpr (std::is_same_v<T, float>) return v;
}

// V elements, moved by 16-byte (or, for V = 1, single) accesses.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vec {
  T v[V];
};

template <int V, typename T>
__device__ __forceinline__ Vec<T, V> load(const T* p) {
  return *reinterpret_cast<const Vec<T, V>*>(p);
}

template <typename T, int V>
__device__ __forceinline__ void store(T* p, const Vec<T, V>& vector) {
  *reinterpret_cast<Vec<T, V>*>(p) = vector;
}

// How blocks and threads divide heatmaps; computed on the host.
struct View {
  int64_t blocks;        // runs x parts
  int64_t run_elements;  // height * row
  int64_t run_stride;    // elements from one run of a picture to the next
  int64_t stride;        // between neighbours in a run: J where NHWC maps are taken one by one, else 1
  int runs;              // per picture: J, or 1 where the maps are interleaved
  int joints;            // interleaved in a run: 1, or J
  int width, height;
  int row;                      // elements of a row: width * joints
  int parts, rows;              // a run is cut into `parts` of `rows` rows, one for each block
  int workers, threads;         // a block's threads; the first `workers` of them own elements
  int step;                     // elements from one vector of a thread to its next: workers * V
  int step_rows, step_columns;  // the same as rows and remaining elements
};

// A block's part of the heatmaps.
struct Part {
  int64_t run;           // its first map is number run * joints of the B*J
  int64_t start;         // of its first element
  int first_row, count;  // rows before it in the run; elements in it
};

// This block's number; the grid's last row may be longer than the work. (32 bits: divisions by 64 take long.)
__device__ __forceinline__ unsigned block_number() { return blockIdx.y * kGridWidth + blockIdx.x; }

__device__ __forceinline__ Part part_of(const View& view, unsigned block) {
  const unsigned run = block / view.parts;
  Part part;
  part.run = run;
  part.first_row = static_cast<int>(block % view.parts) * view.rows;
  const int rows = min(view.rows, view.height - part.first_row);
  part.count = rows > 0 ? rows * view.row : 0;
  part.start = run * view.run_elements;
  if (view.stride > 1) {  // the maps of a picture begin at neighbouring elements
    const unsigned own = run % view.runs;
    part.start = (part.run - own) * view.run_elements + own;
  }
  part.start += static_cast<int64_t>(part.first_row) * view.row * view.stride;
  return part;
}

// Where a thread's next vector lies in its block's part. A vector never crosses the end of a row.
struct Cursor {
  int element, row, column;  // element = row * view.row + column
  __device__ __forceinline__ void advance(const View& view) {
    element += view.step, row += view.step_rows, column += view.step_columns;
    if (column >= view.row) column -= view.row, ++row;
  }
};

// Elements from the start of a run to its element number `element`; only single elements are ever apart.
template <int V>
__device__ __forceinline__ int64_t offset_of(const View& view, int element) {
  return V > 1 ? element : element * view.stride;
}

template <int V>
__device__ __forceinline__ Cursor first_vector(const View& view, const Part& part) {
  const int worker = static_cast<int>(threadIdx.x), element = worker < view.workers ? worker * V : part.count;
  return {element, element / view.row, element % view.row};
}

// The first joint of a thread's vectors, and so of all of them.
template <int V>
__device__ __forceinline__ int first_joint(const View& view) {
  return static_cast<int>(threadIdx.x) * V % view.joints;
}

// The thread's next vectors. Issued long before they are used: the latency hides behind other work.
template <typename T, int V, int N>
__device__ __forceinline__ void load_batch(Vec<T, V> (&batch)[N], const T* heatmaps, const View& view, const Part& part,
                                           const Cursor& cursor) {
#pragma unroll
  for (int u = 0; u < N; ++u) {
    const int element = cursor.element + u * view.step;
    if (element < part.count) batch[u] = load<V>(heatmaps + part.start + offset_of<V>(view, element));
  }
}

// The targets of a block's joints as two tables in shared memory, laid out as the heatmaps are: the value at (row,
// column) is across[column] * down[row * pitch + first_joint + i] for the i-th element of a vector. No exp per pixel,
// no search for the window (entries outside it are 0), and no bank conflicts.
struct Tables {
  float* weight;  // [joints]
  float* across;  // [row]; 16-byte aligned
  float* down;    // [rows][pitch], times the amplitude; joints repeat cyclically, so that a vector needs no modulo
  float* factor;  // [pitch], of a joint's gradient; cyclic too
  int pitch;      // joints + V - 1
};

inline __host__ __device__ int rounded_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

template <int V>
__device__ __forceinline__ Tables tables_of(const View& view) {
  const int pitch = view.joints + V - 1;
  float* const across = shared_memory + rounded_up(view.joints, 4);
  float* const down = across + rounded_up(view.row, 4);
  return {shared_memory, across, down, down + view.rows * pitch, pitch};
}

// One warp per joint. The caller separates this from the tables' use by __syncthreads().
template <int V>
__device__ __forceinline__ void fill_tables(const Tables& tables, const View& view, const Part& part,
                                            const float* keypoints, const float* weights, const Codec& codec) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const float inv_two_variance = 1.0f / (2.0f * codec.sigma * codec.sigma);
  for (int j = threadIdx.x / 32; j < view.joints; j += warps) {
    const int64_t map = part.run * view.joints + j;
    const float weight = weights ? weights[map] : 1.0f;
    const Target t = make_target(keypoints[2 * map], keypoints[2 * map + 1], weight, codec, view.width, view.height);
    if (lane == 0) tables.weight[j] = t.weight;
    for (int x = lane; x < view.width; x += 32) {
      tables.across[x * view.joints + j] = x >= t.x0 && x < t.x1 ? axis_value(x - t.cx, inv_two_variance) : 0.0f;
    }
    for (int row = lane; row < view.rows; row += 32) {
      const int y = part.first_row + row;
      const float value = y >= t.y0 && y < t.y1 ? codec.amplitude * axis_value(y - t.cy, inv_two_variance) : 0.0f;
      for (int k = j; k < tables.pitch; k += view.joints) tables.down[row * tables.pitch + k] = value;
    }
  }
}

inline int64_t table_floats(const View& view, int vector) {
  return rounded_up(view.joints, 4) + rounded_up(view.row, 4) + (int64_t{view.rows} + 1) * (view.joints + vector - 1);
}

inline bool empty(const Maps& maps) { return maps.batch * maps.joints * maps.height * maps.width == 0; }

// The most that the tables of whole runs take, with vectors of `vector` elements.
inline int64_t table_bytes(const Maps& maps, int64_t joints, int vector) {
  return 4 * (joints * (maps.width + 1) + (maps.height + 1) * (joints + vector - 1) + 8);
}

// Whether a block can own a whole NHWC picture: its joints' phases fit its threads, its tables fit shared memory.
inline bool interleaves(const Maps& maps, bool tables) {
  return maps.channels_last && maps.joints <= kMostJoints && maps.joints * maps.height * maps.width <= kMaxElements &&
         (!tables || table_bytes(maps, maps.joints, 1) <= kMaxShared);
}

inline int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// Threads for a run: about eight vectors each, and a step that is a whole number of pixels.
inline void choose_threads(View& view, int vector) {
  const int64_t vectors = int64_t{view.row} * view.rows / vector;
  const int period = view.joints / greatest_common_divisor(view.joints, vector);
  const int wanted = rounded_up(static_cast<int>(min(max(vectors / 8, int64_t{32}), int64_t{kMaxThreads})), 32);
  view.workers = max(wanted / period, 1) * period;
  view.threads = rounded_up(view.workers, 32);
  view.step = view.workers * vector;
  view.step_rows = view.step / view.row, view.step_columns = view.step % view.row;
}

// `split`: a run may be shared by several blocks (there is nothing to sum), which small batches need to fill the GPU.
inline View make_view(const Maps& maps, int vector, bool tables, bool split) {
  constexpr int64_t kEnoughBlocks = 512;
  constexpr int kFewestRows = 8;
  View view{};
  const bool interleaved = interleaves(maps, tables);
  view.run_stride = maps.channels_last ? 1 : maps.height * maps.width;
  view.stride = maps.channels_last && !interleaved ? maps.joints : 1;
  view.runs = interleaved ? 1 : static_cast<int>(maps.joints);
  view.joints = interleaved ? static_cast<int>(maps.joints) : 1;
  view.width = static_cast<int>(maps.width), view.height = static_cast<int>(maps.height);
  view.row = view.width * view.joints;
  view.run_elements = maps.height * view.row;
  const int64_t runs = maps.batch * view.runs, wanted = split ? kEnoughBlocks / runs : 1;
  view.parts = static_cast<int>(max(min(wanted, maps.height / kFewestRows), int64_t{1}));
  view.rows = (view.height + view.parts - 1) / view.parts;
  view.blocks = runs * view.parts;
  choose_threads(view, vector);
  return view;
}

// Calls function(element, vector) with the element type and the widest vector these maps allow: every row must start
// and end at a multiple of 16 bytes. Other shapes take single, still coalesced, accesses.
template <typename T, typename Function>
int with_vectors(const Maps& maps, bool tables, std::initializer_list<const void*> bases, Function&& function) {
  constexpr int kWidest = 16 / sizeof(T);
  const bool interleaved = interleaves(maps, tables);
  const int64_t joints = interleaved ? maps.joints : 1;
  bool wide = (interleaved || !maps.channels_last) && maps.width * joints % kWidest == 0;
  wide = wide && (!tables || table_bytes(maps, joints, kWidest) <= kMaxShared);
  for (const void* base : bases) wide = wide && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  if (wide) return function(T{}, std::integral_constant<int, kWidest>{});
  return function(T{}, std::integral_constant<int, 1>{});
}

template <typename Function>
int dispatch(const Maps& maps, bool tables, std::initializer_list<const void*> bases, Function&& function) {
  if (maps.joints > kMaxElements || maps.height * maps.width > kMaxElements) return cudaErrorInvalidValue;
  switch (maps.dtype) {
    case DType::kFloat32:
      return with_vectors<float>(maps, tables, bases, function);
    case DType::kFloat16:
      return with_vectors<__half>(maps, tables, bases, function);
    case DType::kBFloat16:
      return with_vectors<__nv_bfloat16>(maps, tables, bases, function);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
           Arguments... arguments) {
  constexpr int64_t kSharedWithoutAsking = 48 << 10;
  if (shared_bytes > kMaxShared) return cudaErrorInvalidValue;
  if (shared_bytes > kSharedWithoutAsking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(min(blocks, int64_t{kGridWidth})),
                        static_cast<unsigned>((blocks + kGridWidth - 1) / kGridWidth));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchKernelEx(&config, kernel, arguments...);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace hpe

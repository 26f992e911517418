// scale_gradient: a gradient that the forward pass wrote, times the factor of the backward pass.
//
//   scaled_ij = gradient_ij * factor, in f32 and rounded once; rows known to be 0 stay 0 (qae.h)
//
// Shapes: gradient, scaled [num_rows, num_columns] with strides; row_gradient [num_rows]; factor [1].
// A team (a block; a warp where rows are short) takes a segment of a row at a time: 16-byte loads and
//   stores, the few elements outside whole vectors one by one. The grid is bounded, whatever the
//   batch, so that a factor of 1 in place costs no more than starting it.
// Results: every thread stores what it has loaded. Synchronization: none.
// Determinism: elementwise.
// Bytes: the factor, once a warp; with a factor of 1 in place nothing else. A row that acts is read
//   and written once; one that is known to be 0 costs 4 bytes a segment and, apart from the gradient,
//   its zeros.
#include "log_probs_from_logits.cuh"

namespace QAE_NAMESPACE {

struct ScaleLaunch {
    qae_scale_gradient_params params;
    int64_t segments;  // of a row
    bool keeps_zeros;  // an element is a row
};

// Elements of a segment: two times what a block has in flight.
template <class T>
constexpr int kSegmentColumns = 2 * kBlockThreads * kVectorsInFlight * kVectorElements<T>;

struct Scale {
    float factor;
    bool keeps_zeros;
    __device__ __forceinline__ float of(float value) const {
        return keeps_zeros && value == 0.0f ? value : value * factor;
    }
};

template <class T>
__device__ __forceinline__ uint4 scaled_vector(const Scale& scale, const uint4& vector) {
    constexpr int kVector = kVectorElements<T>;
    float values[kVector];
    unpack<T>(vector, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = scale.of(values[i]);
    return pack<T>(values);
}

// Consecutive elements, by a team; `source` may be `target`: one thread reads an element and then
// writes it. `vectors`: how the source divides, if a vector of it is one of the target.
template <class S, class T>
__device__ __forceinline__ void scale_elements(const S* source, T* target, RowVectors vectors,
                                               const Scale& scale, int rank, int num_threads) {
    if constexpr (sizeof(S) == sizeof(T)) {
        const uint4* const from = reinterpret_cast<const uint4*>(source + vectors.head);
        uint4* const to = reinterpret_cast<uint4*>(target + vectors.head);
        for (int i = rank; i < vectors.num_vectors; i += kVectorsInFlight * num_threads) {
            uint4 words[kVectorsInFlight];
#pragma unroll
            for (int j = 0; j < kVectorsInFlight; ++j) {
                const int index = i + j * num_threads;
                if (index < vectors.num_vectors) words[j] = load_streaming(from + index);
            }
#pragma unroll
            for (int j = 0; j < kVectorsInFlight; ++j) {
                const int index = i + j * num_threads;
                if (index >= vectors.num_vectors) continue;
                store_streaming(to + index, scaled_vector<T>(scale, words[j]));
            }
        }
    }
    for (int edge = rank; edge < vectors.num_edges(); edge += num_threads) {
        const int column = edge_column<S>(vectors, edge);
        const float value = to_float(load_streaming(source + column));
        store_streaming(target + column, from_float<T>(scale.of(value)));
    }
}

__device__ __forceinline__ float load_factor(const qae_scale_gradient_params& params) {
    if (params.factor_bytes == 8) {
        return static_cast<float>(load_uniform(static_cast<const double*>(params.factor)));
    }
    return load_uniform(static_cast<const float*>(params.factor));
}

template <class S, class T, bool kByWarp>
__device__ __forceinline__ void scale_rows(const ScaleLaunch& launch) {
    constexpr int kThreads = kByWarp ? kWarpThreads : kBlockThreads;
    constexpr int kPerBlock = kBlockThreads / kThreads;
    const qae_scale_gradient_params& params = launch.params;
    const bool in_place = params.scaled == params.gradient;
    const Scale scale = {load_factor(params), launch.keeps_zeros};
    if (in_place && scale.factor == 1.0f) return;
    const int rank = static_cast<int>(threadIdx.x) % kThreads;
    const int64_t num_teams = static_cast<int64_t>(gridDim.x) * kPerBlock;
    const int64_t num_items = params.num_rows * launch.segments;
    for (int64_t item = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kThreads;
         item < num_items; item += num_teams) {
        const int64_t row = item / launch.segments;
        const int64_t start = item % launch.segments * kSegmentColumns<S>;
        const int64_t rest = params.num_columns - start;
        const int num_columns =
            static_cast<int>(rest < kSegmentColumns<S> ? rest : kSegmentColumns<S>);
        T* const target = static_cast<T*>(params.scaled) + start +
                          row_offset(params.width, params.scaled_row_stride,
                                     params.scaled_response_stride, row);
        if (params.row_gradient != nullptr && load_uniform(params.row_gradient + row) == 0.0f) {
            if (!in_place) zero_row(target, num_columns, rank, kThreads);
            continue;
        }
        const S* const source =
            static_cast<const S*>(params.gradient) + start +
            row_offset(params.width, params.row_stride, params.response_stride, row);
        const bool in_vectors = sizeof(S) == sizeof(T) && aligned_alike(source, target);
        const RowVectors vectors =
            in_vectors ? row_vectors(source, num_columns) : RowVectors{num_columns, 0, 0};
        scale_elements(source, target, vectors, scale, rank, kThreads);
    }
}

template <class T, bool kByWarp>
__global__ void __launch_bounds__(kBlockThreads)
    scale_gradient(const __grid_constant__ ScaleLaunch launch) {
    scale_rows<T, T, kByWarp>(launch);
}

// From f32 to f16, element by element: for log-probs, whose gradient is kept in f32 until it is
// scaled.
template <bool kByWarp>
__global__ void __launch_bounds__(kBlockThreads)
    scale_and_narrow_gradient(const __grid_constant__ ScaleLaunch launch) {
    scale_rows<float, F16, kByWarp>(launch);
}

inline bool is_valid(const qae_scale_gradient_params& params) {
    const bool has_rows = params.num_rows > 0;
    const bool has_same_strides = params.scaled_row_stride == params.row_stride &&
                                  params.scaled_response_stride == params.response_stride;
    const bool narrows = params.dtype == QAE_F32 && params.scaled_dtype == QAE_F16;
    return in_range(params.dtype, QAE_F16) && (params.scaled_dtype == params.dtype || narrows) &&
           params.num_rows >= 0 && params.num_columns >= 1 && params.width >= 0 &&
           params.row_stride >= params.num_columns &&
           params.scaled_row_stride >= params.num_columns &&
           (params.factor_bytes == 4 || params.factor_bytes == 8) && params.factor != nullptr &&
           is_aligned(params.factor, params.factor_bytes) &&
           (!has_rows || (params.gradient != nullptr && params.scaled != nullptr)) &&
           (params.scaled != params.gradient || (!narrows && has_same_strides)) &&
           is_aligned(params.gradient, element_bytes(params.dtype)) &&
           is_aligned(params.scaled, element_bytes(params.scaled_dtype));
}

// A single column without gaps is one row whose elements are rows.
inline ScaleLaunch scale_launch(const qae_scale_gradient_params& params) {
    ScaleLaunch launch = {params, 1, params.num_columns == 1};
    const bool is_dense = params.num_columns == 1 && params.width == 0 && params.row_stride == 1 &&
                          params.scaled_row_stride == 1;
    if (is_dense && params.row_gradient == nullptr) {
        launch.params.num_columns = params.num_rows;
        launch.params.num_rows = 1;
    }
    return launch;
}

// `launch_instance(T(), by_warp, grid, launch)` launches the instance for elements of T.
template <class T, class Launch>
qae_result launch_segments(ScaleLaunch launch, const Launch& launch_instance) {
    constexpr int64_t kMaxBlocks = 2048;
    const int64_t columns = launch.params.num_columns;
    launch.segments = ceil_div(columns, static_cast<int64_t>(kSegmentColumns<T>));
    const bool by_warp = columns * static_cast<int64_t>(sizeof(T)) <= kWarpRowBytes;
    const int64_t items = launch.params.num_rows * launch.segments;
    const int64_t blocks = by_warp ? ceil_div(items, kBlockWarps) : items;
    return launch_instance(T(), by_warp, blocks < kMaxBlocks ? blocks : kMaxBlocks, launch);
}

}  // namespace QAE_NAMESPACE

extern "C" qae_result QAE_API(scale_gradient)(const qae_scale_gradient_params* params,
                                              void* stream) {
    using namespace QAE_NAMESPACE;
    if (!is_valid(*params)) return QAE_INVALID_ARGUMENT;
    if (params->num_rows == 0) return QAE_OK;
    const ScaleLaunch arguments = scale_launch(*params);
    const auto scale = [&](auto element, bool by_warp, int64_t grid, const ScaleLaunch& of_grid) {
        using T = decltype(element);
        return launch("scale_gradient",
                      by_warp ? scale_gradient<T, true> : scale_gradient<T, false>, grid, 0, stream,
                      of_grid);
    };
    const auto narrow = [&](float, bool by_warp, int64_t grid, const ScaleLaunch& of_grid) {
        return launch("scale_and_narrow_gradient",
                      by_warp ? scale_and_narrow_gradient<true> : scale_and_narrow_gradient<false>,
                      grid, 0, stream, of_grid);
    };
    if (params->scaled_dtype != params->dtype) return launch_segments<float>(arguments, narrow);
    switch (params->dtype) {
        case QAE_F32:
            return launch_segments<float>(arguments, scale);
        case QAE_BF16:
            return launch_segments<Bf16>(arguments, scale);
        default:
            return launch_segments<F16>(arguments, scale);
    }
}

// token_counts: valid tokens, and rows with at least one, of a batch.
//
// Feeds the normalizer where the batch is to be its own denominator (docs/math.md section 3).
// Shapes: mask as qae_layout says; num_tokens, num_rows [1] f64 on the device.
// A block: 8 rows at a time, a warp each.
// Results: integer counters in the workspace; the last block writes them as f64 and clears them.
// Determinism: integers only. Bytes per token: 1 with a mask, else none.

#include "block/last_block.cuh"
#include "block/launch.cuh"
#include "block/layout.cuh"

namespace QAE_NAMESPACE {

struct TokenCountsWorkspace {
    unsigned long long num_tokens, num_rows;
    unsigned ticket, unused;
};

__global__ void __launch_bounds__(kBlockThreads)
    token_counts(const qae_token_counts_params params) {
    QAE_SHARED(unsigned, last_flag, 1);
    const qae_layout& layout = params.layout;
    TokenCountsWorkspace* const workspace = static_cast<TokenCountsWorkspace*>(params.workspace);
    unsigned long long num_tokens = 0, num_rows = 0;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * kBlockWarps + warp_index();
         row < layout.num_rows; row += static_cast<int64_t>(gridDim.x) * kBlockWarps) {
        const RowExtent extent = row_extent(layout, row);
        unsigned long long of_row = static_cast<unsigned long long>(extent.num_valid);
        if (layout.mask != nullptr) {
            const int64_t start =
                layout.offsets != nullptr ? extent.position : row * layout.mask_row_stride;
            of_row =
                __reduce_add_sync(kFullWarp, count_mask(layout.mask + start, extent.num_valid));
        }
        num_tokens += of_row;
        num_rows += of_row > 0;
    }
    if (lane_index() == 0 && num_tokens > 0) {
        atomicAdd(&workspace->num_tokens, num_tokens);
        atomicAdd(&workspace->num_rows, num_rows);
    }
    if (!is_last_block(&workspace->ticket, gridDim.x, last_flag) || threadIdx.x != 0) return;
    store(params.num_tokens, static_cast<double>(load_coherent(&workspace->num_tokens)));
    store(params.num_rows, static_cast<double>(load_coherent(&workspace->num_rows)));
    store(&workspace->num_tokens, 0ull);
    store(&workspace->num_rows, 0ull);
}

}  // namespace QAE_NAMESPACE

extern "C" uint64_t QAE_API(token_counts_workspace_bytes)(const qae_token_counts_params*) {
    return sizeof(QAE_NAMESPACE::TokenCountsWorkspace);
}

extern "C" qae_result QAE_API(token_counts)(const qae_token_counts_params* params, void* stream) {
    using namespace QAE_NAMESPACE;
    const qae_layout& layout = params->layout;
    if (layout.num_rows < 0 || params->num_tokens == nullptr || params->num_rows == nullptr ||
        params->workspace == nullptr) {
        return QAE_INVALID_ARGUMENT;
    }
    if (params->workspace_bytes < QAE_API(token_counts_workspace_bytes)(params)) {
        return QAE_WORKSPACE_TOO_SMALL;
    }
    constexpr int64_t kMaxBlocks = 2048;
    const int64_t blocks = ceil_div(layout.num_rows, kBlockWarps);
    return launch("token_counts", token_counts,
                  blocks < 1            ? 1
                  : blocks < kMaxBlocks ? blocks
                                        : kMaxBlocks,
                  0, stream, *params);
}

// What one block of loss_from_log_probs computes: a tile of slots, a few whole rows, or groups.
//
// Descriptions and groups are functions of their own (not inlined): they are the same for all
// objectives, and nothing of the token stream is live across them.
#pragma once

#include "token_stream.cuh"

namespace QAE_NAMESPACE {

// The extent of a row, read by one lane and given to the warp.
__device__ __forceinline__ RowExtent row_extent_uniform(const qae_layout& layout, int64_t row) {
    RowExtent extent = {0, 0, 0, false};
    if (lane_index() == 0) extent = row_extent(layout, row);
    extent.position = __shfl_sync(kFullWarp, extent.position, 0);
    extent.num_slots = __shfl_sync(kFullWarp, extent.num_slots, 0);
    extent.num_valid = __shfl_sync(kFullWarp, extent.num_valid, 0);
    extent.out_of_range = __shfl_sync(kFullWarp, static_cast<int>(extent.out_of_range), 0) != 0;
    return extent;
}

// What a token of a response of `length` valid tokens weighs in the aggregated loss.
__device__ __forceinline__ void set_share(RowPiece& piece, const LossLaunch& launch, double factor,
                                          int64_t length) {
    const bool per_length = launch.params.aggregation == QAE_SEQ_MEAN_TOKEN_MEAN && length > 0;
    const double share = per_length ? 1.0 / static_cast<double>(length) : 1.0;
    piece.share = static_cast<float>(share);
    piece.coefficient = static_cast<float>(share * factor * launch.params.grad_scale);
}

// A range of slots, of all rows' slots, and the rows among which it is looked for.
struct SlotRange {
    int64_t begin, end;
    int64_t first_row, end_row;
    bool takes_empty_end;  // rows without slots at `end` belong to it
};

constexpr int64_t kMaxRowSlots = 0x7fffffff;

// A warp describes the part of a row that lies in the range.
__device__ __forceinline__ RowPiece describe_piece(const LossLaunch& launch, int64_t row,
                                                   const RowExtent& extent, const SlotRange& range,
                                                   double factor, SharedPointer<float> stage) {
    const qae_loss_from_log_probs_params& params = launch.params;
    const qae_layout& layout = params.layout;
    const int64_t row_end = extent.position + extent.num_slots;
    const int64_t first = extent.position > range.begin ? extent.position : range.begin;
    const int64_t last = row_end < range.end ? row_end : range.end;
    const int64_t skipped = first - extent.position;
    // A tile never is, but a whole row could be too long to be counted in 32 bits.
    const bool too_long = last - first > kMaxRowSlots;
    const int64_t num_slots = last > first && !too_long ? last - first : 0;
    const int64_t num_valid = extent.num_valid - skipped;
    const bool is_packed = layout.offsets != nullptr;
    const bool owns_row = extent.position >= range.begin;
    count_left_out(&launch.plan.header->out_of_range,
                   owns_row && (extent.out_of_range || too_long));

    RowPiece piece;
    piece.start = is_packed ? first : row * layout.row_stride + skipped;
    piece.mask_start = is_packed ? first : row * layout.mask_row_stride + skipped;
    piece.gradient_start = is_packed ? first : row * layout.gradient_row_stride + skipped;
    piece.num_slots = static_cast<int32_t>(num_slots);
    piece.num_valid = static_cast<int32_t>(num_valid < 0           ? 0
                                           : num_valid < num_slots ? num_valid
                                                                   : num_slots);
    piece.row = static_cast<int32_t>(row);
    piece.advantage = row_advantage(launch, row, stage, owns_row);
    const bool acts = piece.advantage != 0.0f || params.kl != QAE_KL_NONE;
    const bool reads = (acts || params.metrics_scope == QAE_METRICS_ALL) && piece.num_valid > 0;
    const bool writes = acts || params.inactive_gradient == QAE_INACTIVE_ZERO_FILL;
    piece.flags =
        (owns_row ? kPieceOwnsRow : 0) | (reads ? kPieceReads : 0) | (writes ? kPieceWrites : 0);
    piece.weight = 1.0f;
    if (params.weight_per_response != 0 && reads) {
        piece.weight = load_uniform(params.importance_weight + row);
    }
    set_share(piece, launch, factor, extent.num_valid);
    return piece;
}

// The pieces of up to kRowsPerBatch rows, a warp each; a piece with row -1 ends a shorter batch.
__device__ __noinline__ void describe_batch(const LossLaunch& launch,
                                            SharedPointer<SlotRange> shared_range,
                                            SharedPointer<RowPiece> pieces,
                                            SharedPointer<unsigned> active,
                                            SharedPointer<float> stages) {
    const SlotRange range = shared_range[0];
    const SharedPointer<float> stage = stages + warp_index() * launch.plan.stage_floats;
    const double factor = loss_factor(launch.params);
    for (int i = warp_index(); i < kRowsPerBatch; i += kBlockWarps) {
        const int64_t row = range.first_row + i;
        RowPiece piece = {};
        piece.row = -1;
        if (row < range.end_row) {
            const RowExtent extent = row_extent_uniform(launch.params.layout, row);
            if (extent.position < range.end || range.takes_empty_end) {
                piece = describe_piece(launch, row, extent, range, factor, stage);
            }
        }
        if (lane_index() == 0) {
            pieces[i] = piece;
            active[i] = 0;
        }
        if (piece.row < 0) break;
    }
}

// The sign that a row's advantage counts for; none where advantages are given per token.
__device__ __forceinline__ unsigned sign_state(const LossLaunch& launch, float advantage) {
    if (launch.params.advantage_source == QAE_ADVANTAGE_PER_TOKEN) return 1u;
    return advantage > 0.0f ? 2u : advantage < 0.0f ? 0u : 1u;
}

// What became of the rows of a batch, a thread each.
__device__ __forceinline__ void record_batch(const LossLaunch& launch, int64_t unit, int num_pieces,
                                             SharedPointer<RowPiece> pieces,
                                             SharedPointer<unsigned> active) {
    for (int i = static_cast<int>(threadIdx.x); i < num_pieces; i += kBlockThreads) {
        const RowPiece piece = pieces[i];
        const bool is_active = active[i] != 0;
        if ((piece.flags & kPieceOwnsRow) != 0) {
            const unsigned state = sign_state(launch, piece.advantage);
            store(launch.plan.row_state + piece.row,
                  static_cast<uint8_t>(state | (is_active ? kRowActive : 0u)));
        } else if (is_active) {
            store(launch.plan.continued_row + unit, piece.row);
        }
    }
}

// A warp's vote on whether it saw an active token of piece `i`.
__device__ __forceinline__ void note_active(bool saw_active, SharedPointer<unsigned> active,
                                            int i) {
    if (__any_sync(kFullWarp, saw_active) && lane_index() == 0) atomicOr(&active[i], 1u);
}

__device__ __forceinline__ SlotRange tile_range(const LossLaunch& launch, int64_t unit) {
    const qae_layout& layout = launch.params.layout;
    SlotRange range;
    range.begin = unit * launch.plan.tile_slots;
    range.takes_empty_end = unit == launch.plan.num_units - 1;
    range.end = range.takes_empty_end ? layout.num_slots : range.begin + launch.plan.tile_slots;
    range.first_row = first_row_at(layout, range.begin);
    range.end_row = layout.num_rows;
    return range;
}

// A tile: the slots [unit * tile_slots, + tile_slots) of all rows' slots, whichever rows they belong
// to. The warps describe the rows of a batch, one each, and then stream all of them together.
template <class Traits>
__device__ __forceinline__ void compute_tile(const LossLaunch& launch, int64_t unit,
                                             SharedPointer<float> stages,
                                             SharedPointer<Accumulator> warp_sums) {
    QAE_SHARED(RowPiece, pieces, kRowsPerBatch);
    QAE_SHARED(unsigned, active, kRowsPerBatch);
    QAE_SHARED(SlotRange, range, 1);
    if (threadIdx.x == 0) {
        range[0] = tile_range(launch, unit);
        store(launch.plan.continued_row + unit, -1);
    }
    int num_pieces;
    do {
        // The range is set, and the pieces of the batch before are read, by all.
        __syncthreads();
        describe_batch(launch, range, pieces, active, stages);
        __syncthreads();
        ThreadSums sums;
        for (num_pieces = 0; num_pieces < kRowsPerBatch; ++num_pieces) {
            const RowPiece piece = pieces[num_pieces];
            if (piece.row < 0) break;
            // The first chunk of each piece goes to another warp.
            const int first_chunk = (warp_index() - num_pieces) & (kBlockWarps - 1);
            note_active(stream_piece<Traits>(launch, piece, RowTerms{}, first_chunk, kBlockWarps,
                                             false, {}, sums),
                        active, num_pieces);
        }
        add_warp_sums(sums, warp_sums);
        __syncthreads();
        record_batch(launch, unit, num_pieces, pieces, active);
        if (threadIdx.x == 0) {
            SlotRange next = range[0];
            next.first_row += num_pieces;
            range[0] = next;
        }
    } while (num_pieces == kRowsPerBatch);
}

// First pass over a row, where its tokens' gradients need the whole row: its number of valid tokens
// and, for GSPO, the sum of its log-ratios.
struct RowPass {
    unsigned num_valid = 0, num_nonfinite = 0;
    double log_ratio_sum = 0.0;

    __device__ __forceinline__ void add(float log_ratio, float& sum) {
        if (is_finite(log_ratio)) {
            sum += log_ratio;
        } else {
            ++num_nonfinite;
        }
    }
};

// Saves the valid bits of each vector for the second pass.
template <class Traits>
__device__ __forceinline__ RowPass scan_row(const LossLaunch& launch, const RowPiece& piece,
                                            int first_chunk, int chunk_step, bool needs_ratio,
                                            bool saves, SharedPointer<uint8_t> saved_bits) {
    using T = typename Traits::T;
    constexpr int kVector = Traits::kVector;
    const qae_loss_from_log_probs_params& params = launch.params;
    const bool is_bf16 = params.dtype == QAE_BF16;
    const PieceVectors vectors = piece_vectors<Traits>(piece, launch.plan.vectorized != 0);
    const int first = first_chunk * kWarpThreads + lane_index();
    const int step = chunk_step * kWarpThreads;
    RowPass pass;
    for (int vector = first; vector < vectors.num_vectors; vector += step) {
        const int32_t slot = vectors.head + vector * kVector;
        TokenVector<Traits> tokens;
        tokens.locate(params.layout, piece, slot);
        if (saves) saved_bits[vector] = static_cast<uint8_t>(tokens.valid_bits);
        pass.num_valid += static_cast<unsigned>(__popc(tokens.valid_bits));
        if (!needs_ratio || tokens.valid_bits == 0) continue;
        tokens.load_ratio(params, piece.start + slot, true);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (!(tokens.valid_bits >> i & 1u)) continue;
            pass.add(widen(tokens.log_prob.values[i], is_bf16) -
                         widen(tokens.old_log_prob.values[i], is_bf16),
                     sum);
        }
        pass.log_ratio_sum += static_cast<double>(sum);
    }
    for (int i = first; i < vectors.num_singles; i += step) {
        const int32_t slot = single_slot<Traits>(vectors, i);
        if (slot >= piece.num_valid) continue;
        if (params.layout.mask != nullptr &&
            load_streaming(params.layout.mask + piece.mask_start + slot) == 0) {
            continue;
        }
        ++pass.num_valid;
        if (!needs_ratio) continue;
        const int64_t index = piece.start + slot;
        float sum = 0.0f;
        pass.add(
            widen(load_streaming(static_cast<const T*>(params.log_prob) + index), is_bf16) -
                widen(load_streaming(static_cast<const T*>(params.old_log_prob) + index), is_bf16),
            sum);
        pass.log_ratio_sum += static_cast<double>(sum);
    }
    return pass;
}

template <class Team>
__device__ __forceinline__ RowPass team_total(const Team& team, const RowPass& pass) {
    RowPass total;
    total.num_valid = team.sum(pass.num_valid);
    total.num_nonfinite = team.sum(pass.num_nonfinite);
    total.log_ratio_sum = team.sum(pass.log_ratio_sum);
    return total;
}

__device__ __forceinline__ RowTerms gspo_terms(const LossLaunch& launch, const RowPass& pass) {
    RowTerms row;
    row.log_ratio = static_cast<float>(pass.log_ratio_sum / pass.num_valid);
    const float limit = launch.options.seq_log_ratio_max;
    row.ratio = expf(fminf(row.log_ratio, limit));
    row.gradient_ratio = row.log_ratio <= limit ? row.ratio : 0.0f;
    row.usable = pass.num_nonfinite == 0;
    return row;
}

// One whole row by a team of one or all warps of the block: scanned first where its gradient needs
// that, then streamed.
template <class Traits>
__device__ __forceinline__ bool compute_row(const LossLaunch& launch, RowPiece& piece,
                                            const BlockTeam& block_team,
                                            SharedPointer<uint8_t> saved_bits, ThreadSums& sums) {
    const LossPlan& plan = launch.plan;
    const qae_loss_from_log_probs_params& params = launch.params;
    const bool by_block = plan.team_warps == kBlockWarps;
    const int warp_in_team = warp_index() & (plan.team_warps - 1);
    const bool saves = piece.num_slots / Traits::kVector <= plan.saved_vectors;
    const bool reads = (piece.flags & kPieceReads) != 0;
    const bool scans = reads && (Traits::kIsGspo || params.layout.mask != nullptr);
    const bool needs_ratio =
        Traits::kIsGspo && (piece.advantage != 0.0f || params.metrics_scope == QAE_METRICS_ALL);
    RowTerms terms = {};
    unsigned num_nonfinite = 0;
    if (scans) {
        RowPass pass = scan_row<Traits>(launch, piece, warp_in_team, plan.team_warps, needs_ratio,
                                        saves, saved_bits);
        pass = by_block ? team_total(block_team, pass) : team_total(WarpTeam(), pass);
        set_share(piece, launch, loss_factor(params), pass.num_valid);
        if (needs_ratio && pass.num_valid > 0) {
            terms = gspo_terms(launch, pass);
            num_nonfinite = pass.num_nonfinite;
        }
    }
    const bool saw_active = stream_piece<Traits>(launch, piece, terms, warp_in_team,
                                                 plan.team_warps, scans && saves, saved_bits, sums);
    // With a KL term the second pass read, and counted, each token itself.
    if (Traits::kIsGspo && params.kl == QAE_KL_NONE && num_nonfinite > 0) {
        const unsigned vote = saw_active;
        const bool is_active = (by_block ? block_team.sum(vote) : WarpTeam().sum(vote)) > 0;
        const bool is_first = warp_in_team == 0 && lane_index() == 0;
        sums.nonfinite_tokens += is_active && is_first ? num_nonfinite : 0u;
    }
    return saw_active;
}

// Whole rows: [unit * rows_per_unit, + rows_per_unit), at most a batch.
template <class Traits>
__device__ __forceinline__ void compute_rows(const LossLaunch& launch, int64_t unit,
                                             SharedPointer<float> stages,
                                             SharedPointer<uint8_t> saved,
                                             SharedPointer<Accumulator> warp_sums) {
    QAE_SHARED(RowPiece, pieces, kRowsPerBatch);
    QAE_SHARED(unsigned, active, kRowsPerBatch);
    QAE_SHARED(unsigned long long, scratch, kBlockWarps);
    QAE_SHARED(SlotRange, range, 1);
    const LossPlan& plan = launch.plan;
    const int64_t first_row = unit * plan.rows_per_unit;
    const int64_t num_rows = launch.params.layout.num_rows;
    const int64_t end_row =
        first_row + plan.rows_per_unit < num_rows ? first_row + plan.rows_per_unit : num_rows;
    if (threadIdx.x == 0) {
        range[0] = SlotRange{0, launch.params.layout.num_slots, first_row, end_row, true};
        store(plan.continued_row + unit, -1);
    }
    __syncthreads();
    describe_batch(launch, range, pieces, active, stages);
    __syncthreads();
    const int num_pieces = static_cast<int>(end_row - first_row);
    const int num_teams = kBlockWarps / plan.team_warps;
    const int team = warp_index() / plan.team_warps;
    ThreadSums sums;
    for (int i = team; i < num_pieces; i += num_teams) {
        RowPiece piece = pieces[i];
        note_active(compute_row<Traits>(launch, piece, BlockTeam{scratch},
                                        saved + team * plan.saved_vectors, sums),
                    active, i);
    }
    add_warp_sums(sums, warp_sums);
    __syncthreads();
    record_batch(launch, unit, num_pieces, pieces, active);
}

// The groups' own outputs and counts, a warp a group.
__device__ __noinline__ void compute_groups(const LossLaunch& launch, SharedPointer<float> stages) {
    const qae_loss_from_log_probs_params& params = launch.params;
    const SharedPointer<float> stage = stages + warp_index() * launch.plan.stage_floats;
    const WarpTeam team;
    GroupCounts counts;
    const int stride = launch.plan.group_blocks * kBlockWarps;
    for (int group = static_cast<int>(blockIdx.x) * kBlockWarps + warp_index();
         group < params.groups.num_groups; group += stride) {
        const GroupRange range = group_range(params.groups, group);
        const GroupSummary summary =
            summarize_staged_group(params.groups, params.advantage_options, range, stage);
        finish_group(team, params.groups, params.advantage_options, summary, range, params.baseline,
                     params.advantage, counts);
    }
    add_group_counts(counts, launch.plan.header->group_counters);
}

}  // namespace QAE_NAMESPACE

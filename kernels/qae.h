/* The C ABI of the qae kernels: the only file that CUDA, C++ and Rust all read.
 *
 * Every launcher takes a params struct and a stream (a cudaStream_t), checks what the host can see,
 * enqueues its kernel and returns; nothing is allocated and nothing synchronizes, so every call can
 * be captured in a CUDA graph. All pointers in a params struct are device pointers; NULL where a
 * field says "or NULL". A struct must be zero-initialized before its fields are set.
 *
 * Workspace: `*_workspace_bytes` says how much; 256-byte aligned; zeroed once by the caller before
 * its first use and left zeroed where that matters by every launch. One workspace serves one launch
 * at a time.
 */
#ifndef QAE_H
#define QAE_H

#include <stddef.h>
#include <stdint.h>

#ifndef QAE_API /* the emulator builds the same launchers under names of its own */
#define QAE_API(name) qae_##name
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 0, a qae_status, or (below 0) a negated cudaError_t of the launch. */
typedef int32_t qae_result;

enum qae_status {
    QAE_OK = 0,
    QAE_INVALID_ARGUMENT = 1,   /* a field is out of range or a needed pointer is NULL */
    QAE_WORKSPACE_TOO_SMALL = 2 /* workspace_bytes is below the query's answer */
};

enum qae_dtype { QAE_F32 = 0, QAE_BF16 = 1, QAE_F16 = 2 };

enum qae_baseline {
    QAE_BASELINE_MEAN = 0,
    QAE_BASELINE_LEAVE_ONE_OUT = 1,
    QAE_BASELINE_QUANTILE_INVERTED_CDF = 2,
    QAE_BASELINE_QUANTILE_LINEAR = 3
};
enum qae_scale { QAE_SCALE_NONE = 0, QAE_SCALE_STD_UNBIASED = 1, QAE_SCALE_STD_POPULATION = 2 };
enum qae_singleton { QAE_SINGLETON_REWARD = 0, QAE_SINGLETON_ZERO = 1 };
enum qae_gate {
    QAE_GATE_OFF = 0,
    QAE_GATE_TWO_REGIME = 1,
    QAE_GATE_POSITIVE_MASK = 2,
    QAE_GATE_NEGATIVE_MASK = 3
};
enum qae_objective {
    QAE_OBJECTIVE_CLIP = 0,
    QAE_OBJECTIVE_GSPO = 1,
    QAE_OBJECTIVE_CISPO = 2,
    QAE_OBJECTIVE_SAPO = 3,
    QAE_OBJECTIVE_REINFORCE = 4
};
enum qae_kl { QAE_KL_NONE = 0, QAE_KL_K1 = 1, QAE_KL_K2 = 2, QAE_KL_K3 = 3 };
enum qae_aggregation {
    QAE_TOKEN_MEAN = 0,
    QAE_SEQ_MEAN_TOKEN_MEAN = 1,
    QAE_SEQ_MEAN_TOKEN_SUM = 2
};
enum qae_advantage_source {
    QAE_ADVANTAGE_FROM_REWARDS = 0,
    QAE_ADVANTAGE_PER_RESPONSE = 1,
    QAE_ADVANTAGE_PER_TOKEN = 2
};
enum qae_metrics_scope { QAE_METRICS_ACTIVE = 0, QAE_METRICS_ALL = 1 };
/* COMPACT: from logits only. */
enum qae_inactive_gradient {
    QAE_INACTIVE_ZERO_FILL = 0,
    QAE_INACTIVE_UNTOUCHED = 1,
    QAE_INACTIVE_COMPACT = 2
};
/* How loss_from_logits keeps a row of logits on the chip between its two uses. */
enum qae_row_policy {
    QAE_ROW_AUTO = 0,
    QAE_ROW_CLUSTER = 1, /* in the shared memory of a cluster; compute capability 9.0 or newer */
    QAE_ROW_BLOCK = 2    /* in the shared memory of a block; what does not fit is read twice */
};

/* The rewards of the global batch and its partition into groups. */
typedef struct qae_groups {
    const float* rewards; /* [num_responses] */
    int32_t num_responses;
    int32_t num_groups;
    int32_t group_size;     /* of every group; 0: `offsets` says */
    int32_t max_group_size; /* of the largest group */
    const int32_t* offsets; /* [num_groups + 1] into `order`; NULL if group_size > 0 */
    const int32_t* order;   /* [num_responses] responses sorted by group, or NULL: they are */
    const int32_t* group_of_response; /* [num_responses]; NULL if group_size > 0 */
} qae_groups;

/* From rewards to advantages. */
typedef struct qae_advantage_options {
    double k;                 /* quantile level in (0, 1); unused by the mean baselines */
    double epsilon;           /* added to the standard deviation, >= 0 */
    double success_threshold; /* a reward above it is a success; round it to float, as rewards are */
    int32_t baseline;         /* enum qae_baseline */
    int32_t scale;            /* enum qae_scale */
    int32_t singleton;        /* enum qae_singleton */
    int32_t gate;             /* enum qae_gate; other than OFF needs a quantile baseline */
} qae_advantage_options;

/* Counts over groups and responses of the global batch; zeros if advantages were given. */
typedef struct qae_group_metrics {
    uint64_t num_groups;
    uint64_t hard_groups;
    uint64_t easy_groups;
    uint64_t zero_variance_groups;
    uint64_t positive;
    uint64_t zero;
    uint64_t negative;
    uint64_t nonfinite_rewards;
} qae_group_metrics;

/* advantages: rewards -> baselines, advantages, the list of active responses. */
typedef struct qae_advantages_params {
    qae_groups groups;
    qae_advantage_options options;
    float* baseline;       /* [num_responses] or NULL */
    float* advantage;      /* [num_responses] */
    int32_t* active;       /* [num_responses] or NULL: responses with advantage != 0, ascending */
    int32_t* active_count; /* [1] or NULL: how many of `active` are written */
    qae_group_metrics* metrics; /* [1] */
    void* workspace;
    uint64_t workspace_bytes;
} qae_advantages_params;

/* Where the tokens of each local row stand. A slot is a place for a token. */
typedef struct qae_layout {
    int64_t num_rows;
    int64_t width;               /* padded: slots per row; packed: 0 */
    int64_t num_slots;           /* packed: slots in all rows; padded: num_rows * width; < 2^32 */
    int64_t row_stride;          /* padded: elements from row to row of the token tensors */
    int64_t mask_row_stride;     /* the same of the mask */
    int64_t gradient_row_stride; /* the same of the gradient */
    const int64_t* offsets;      /* packed: [num_rows + 1]; NULL: padded */
    const int32_t* lengths;      /* padded: [num_rows] valid leading slots, or NULL: width */
    const uint8_t* mask;         /* non-zero: the slot is a token that counts; or NULL: all do */
} qae_layout;

/* token_counts: how many tokens and non-empty rows a batch has, for a normalizer of its own. */
typedef struct qae_token_counts_params {
    qae_layout layout;
    double* num_tokens; /* [1] */
    double* num_rows;   /* [1] rows with at least one valid token */
    void* workspace;
    uint64_t workspace_bytes;
} qae_token_counts_params;

/* What loss_from_log_probs reports, in device memory. */
typedef struct qae_loss_metrics {
    double loss; /* pg_loss + kl_coef * kl_loss */
    double pg_loss;
    double kl_loss;           /* before its coefficient */
    double neg_log_ratio_sum; /* nats, over the tokens in scope */
    double min_ratio;         /* +inf if no token is in scope */
    double max_ratio;         /* -inf likewise */
    uint64_t positive;        /* local rows by the sign of their advantage */
    uint64_t zero;
    uint64_t negative;
    uint64_t active;        /* local rows with advantage != 0 and a valid token */
    uint64_t tokens;        /* valid tokens in scope */
    uint64_t active_tokens; /* valid tokens with advantage != 0 */
    uint64_t clipped_above;
    uint64_t clipped_below;
    uint64_t dual_clipped;
    uint64_t nonfinite_tokens; /* left out of the loss */
    uint64_t out_of_range;     /* rows whose index, offset or length is outside its tensor; offsets
                                  that decrease between rows access nothing outside either, but
                                  then the counts of rows are unspecified */
    qae_group_metrics groups;
} qae_loss_metrics;

/* loss_from_log_probs: rewards or advantages and log-probs -> loss, gradient, metrics. */
typedef struct qae_loss_from_log_probs_params {
    qae_groups groups;                       /* if advantages come from rewards */
    qae_advantage_options advantage_options; /* likewise */
    int32_t advantage_source;                /* enum qae_advantage_source */
    int32_t dtype;                           /* enum qae_dtype of the three log-prob tensors */
    int32_t gradient_dtype;                  /* QAE_F32 or equal to dtype */
    int32_t weight_per_response;             /* importance_weight is [num_rows], not per slot */
    const int32_t* response_index;           /* [num_rows] or NULL: row i is response i */
    const float* advantages;                 /* [num_rows], or one per slot; NULL from rewards */
    qae_layout layout;
    const void* log_prob;
    const void* old_log_prob;       /* NULL only with QAE_OBJECTIVE_REINFORCE */
    const void* ref_log_prob;       /* NULL without KL */
    const float* importance_weight; /* or NULL */
    int32_t objective;              /* enum qae_objective */
    int32_t kl;                     /* enum qae_kl */
    int32_t kl_clamp;               /* K3: verl's clamps */
    int32_t aggregation;            /* enum qae_aggregation */
    float clip_min;                 /* 1 - low, or -inf */
    float clip_max;                 /* 1 + high, or +inf */
    float dual_clip;                /* +inf: off */
    float ratio_cap;                /* +inf: off */
    float log_ratio_clamp;          /* +inf: off; CLIP, CISPO and SAPO only */
    float seq_log_ratio_max;        /* +inf: off; GSPO only */
    float tau_positive;
    float tau_negative;
    float kl_coef;
    int32_t metrics_scope;     /* enum qae_metrics_scope */
    int32_t inactive_gradient; /* enum qae_inactive_gradient */
    int32_t reserved;
    double normalizer;               /* tokens or responses, > 0; unused if on the device */
    const double* device_normalizer; /* [1] or NULL; <= 0 or NaN makes everything 0 */
    double loss_multiplier;          /* of the loss and its gradient */
    double grad_scale;               /* of the gradient only */
    void* d_log_prob;                /* laid out with gradient_row_stride */
    float* baseline;                 /* [num_responses] or NULL; from rewards only */
    float* advantage;                /* [num_responses] or NULL; from rewards only */
    int32_t* active_rows;            /* [num_rows] or NULL, ascending */
    int32_t* active_count;           /* [1] or NULL */
    qae_loss_metrics* metrics;       /* [1] */
    void* workspace;
    uint64_t workspace_bytes;
} qae_loss_from_log_probs_params;

/* Rows of logits: one token's scores over a vocabulary, or over a shard of it. */
typedef struct qae_logits {
    const void* values;    /* column j of row i is element
                              i / width * response_stride + i % width * row_stride + j */
    const void* token_ids; /* [num_rows] the token of each row, in the whole vocabulary */
    int64_t num_rows;
    int64_t width;           /* rows of a response; 0: row i is at i * row_stride */
    int64_t row_stride;      /* elements, >= vocab_size */
    int64_t response_stride; /* elements; unused if width is 0 */
    int64_t vocab_size;      /* columns, >= 1 */
    int64_t vocab_start;     /* token id of column 0; not 0 in a shard of a parallel vocabulary */
    int32_t dtype;           /* enum qae_dtype */
    int32_t token_id_bytes;  /* 4 or 8: int32 or int64 */
    float temperature;       /* > 0; logits are divided by it */
    int32_t reserved;
} qae_logits;

/* What a softmax needs to know of one row, or of a shard of it; x are raw logits, T the temperature.
 * Two shards a and b merge to max = max(a.max, b.max), and with s = exp((shard.max - max) / T),
 * sum_exp += s * shard.sum_exp and
 * sum_exp_z += s * (shard.sum_exp_z + shard.sum_exp * (shard.max - max) / T).
 * A row is unusable if sum_exp is 0 or not finite: a NaN or +inf logit, -inf everywhere, or finite
 * logits beyond FLT_MAX T / log2(e). */
typedef struct qae_softmax_stats {
    float max_logit; /* of the logits, to one rounding; -FLT_MAX if none is finite */
    float sum_exp;   /* sum of exp((x - max_logit) / T) */
    float sum_exp_z; /* sum of exp((x - max_logit) / T) * (x - max_logit) / T, nats */
    float own_logit; /* of the row's token; -inf if this shard does not hold it */
} qae_softmax_stats;

/* log_probs_from_logits: log_prob = z[token] - logsumexp(z), entropy = -sum p log p, z = logits / T.
 * A row of which nothing finite can be said has NaN in all three; a token id outside the vocabulary
 * likewise; a token whose own logit is -inf has log_prob -inf. */
typedef struct qae_log_probs_from_logits_params {
    qae_logits logits;
    const uint8_t* mask;      /* [num_rows] or NULL; 0: the row is not read, its results are 0 */
    float* log_prob;          /* [num_rows], nats, or NULL; not of a shard */
    float* entropy;           /* [num_rows], nats, or NULL; not of a shard */
    float* log_sum_exp;       /* [num_rows], nats, or NULL; not of a shard */
    qae_softmax_stats* stats; /* [num_rows] or NULL: for the backward pass, or to be merged */
} qae_log_probs_from_logits_params;

/* merge_softmax_stats: the second phase of a vocabulary-parallel log_probs_from_logits. */
typedef struct qae_merge_softmax_stats_params {
    const qae_softmax_stats*
        shards;          /* [num_shards, num_rows], such as all ranks gathered; 1: reduced */
    const uint8_t* mask; /* [num_rows] or NULL; 0: the row's results are 0 */
    int64_t num_rows;
    int32_t num_shards;
    float temperature;
    float* log_prob;          /* [num_rows], nats, or NULL */
    float* entropy;           /* [num_rows], nats, or NULL */
    float* log_sum_exp;       /* [num_rows], nats, or NULL */
    qae_softmax_stats* stats; /* [num_rows] or NULL: of the whole vocabulary */
} qae_merge_softmax_stats_params;

/* log_probs_from_logits_backward: d_logits = (g (1[token] - p) - h p (z - sum p z)) / T with
 * g = d_log_prob and h = d_entropy. Rows whose g and h are both 0 are not read. g or h that is not
 * finite, g of a token whose own logit is -inf or whose id is outside the vocabulary, and unusable
 * rows count as 0. */
typedef struct qae_log_probs_from_logits_backward_params {
    qae_logits logits;              /* as in the forward pass, still holding the logits */
    const qae_softmax_stats* stats; /* [num_rows] of the whole vocabulary */
    const float* d_log_prob;        /* [num_rows] */
    const float* d_entropy;         /* [num_rows] or NULL: 0 */
    void* d_logits;            /* of the logits' dtype; may be logits.values with its strides */
    int64_t d_row_stride;      /* elements, >= vocab_size */
    int64_t d_response_stride; /* elements; unused if logits.width is 0 */
    int32_t inactive_gradient; /* ZERO_FILL or UNTOUCHED: rows whose g and h are 0 */
    int32_t reserved;
} qae_log_probs_from_logits_backward_params;

/* scale_gradient: scaled = gradient * factor, in f32 and rounded once: the backward pass of a loss
 * whose gradient is there already. A row that is known to be 0 stays 0, whatever the factor: one whose
 * row_gradient is 0, or whose only column is 0. Nothing else is special about a factor that is not
 * finite. In place (scaled is gradient, with its strides) a factor of 1 reads and writes nothing. */
typedef struct qae_scale_gradient_params {
    const void* gradient;      /* column j of row i is element
                                  i / width * response_stride + i % width * row_stride + j */
    void* scaled;              /* the same with its own strides; gradient, or apart from it */
    const void* factor;        /* [1] f32 or f64, rounded to f32 */
    const float* row_gradient; /* [num_rows] or NULL, such as d_log_prob of loss_from_logits without
                                  an entropy term; 0: the row is not read and, in place, not written */
    int64_t num_rows;
    int64_t num_columns;     /* >= 1 */
    int64_t width;           /* rows of a response; 0: row i is at i * row_stride */
    int64_t row_stride;      /* elements, >= num_columns */
    int64_t response_stride; /* elements; unused if width is 0 */
    int64_t scaled_row_stride;
    int64_t scaled_response_stride;
    int32_t dtype;        /* enum qae_dtype of gradient */
    int32_t scaled_dtype; /* the same, or QAE_F16 of QAE_F32 */
    int32_t factor_bytes; /* 4 or 8 */
    int32_t reserved;
} qae_scale_gradient_params;

/* What loss_from_logits reports, in device memory. */
typedef struct qae_logits_metrics {
    qae_loss_metrics loss;   /* its loss includes - entropy_coef * entropy_loss; its out_of_range
                                counts token ids outside the vocabulary too */
    double entropy_loss;     /* aggregated entropy of the tokens in scope, before its coefficient */
    double entropy_positive; /* nats, summed over the tokens in scope with a positive advantage */
    double entropy_zero;
    double entropy_negative;
    uint64_t positive_tokens; /* tokens in those sums */
    uint64_t zero_tokens;
    uint64_t negative_tokens;
} qae_logits_metrics;

/* loss_from_logits: rewards or advantages and logits -> loss, metrics, log-probs, entropy, d_logits.
 *
 * `loss` describes everything that is not logits, as for loss_from_log_probs, except: log_prob is
 * unused; dtype is that of old_log_prob and ref_log_prob; d_log_prob may be NULL; metrics is unused;
 * workspace is the one of this launch. A slot of the layout is a row of logits: slot t of response i
 * is i * response_stride + t * row_stride (padded), slot s is s * row_stride (packed, indexed). */
typedef struct qae_loss_from_logits_params {
    qae_loss_from_log_probs_params loss;
    qae_logits logits; /* num_rows, width and vocab_start are unused; token_ids as the log-probs */
    const int32_t*
        slot_response;          /* [num_slots] the local response of each slot, any order, below 0:
                                     none; NULL: layout says. With it: no offsets and lengths, no GSPO,
                                     SEQ_MEAN_TOKEN_MEAN or COMPACT, which need whole responses */
    void* d_logits;             /* of the logits' dtype; may be logits.values with its strides, but
                                     not with COMPACT */
    int64_t d_row_stride;       /* elements, >= vocab_size */
    int64_t d_response_stride;  /* elements; rows must not overlap; padded only, not with
                                     COMPACT */
    int64_t compact_rows;       /* COMPACT: rows that d_logits has room for; rows beyond are not
                                     written, though counted in active_slot_count */
    int64_t* active_slots;      /* [num_slots] or NULL: the slots with a gradient, ascending;
                                     COMPACT only */
    int64_t* active_slot_count; /* [1] or NULL; COMPACT only */
    float* log_prob; /* nats, laid out as d_log_prob, or NULL; 0 where a row is not read */
    float* entropy;  /* nats, likewise */
    qae_logits_metrics* metrics; /* [1] */
    float entropy_coef;          /* of the entropy bonus; 0: off */
    int32_t row_policy;          /* enum qae_row_policy */
} qae_loss_from_logits_params;

uint64_t QAE_API(advantages_workspace_bytes)(const qae_advantages_params* params);
qae_result QAE_API(advantages)(const qae_advantages_params* params, void* stream);

uint64_t QAE_API(token_counts_workspace_bytes)(const qae_token_counts_params* params);
qae_result QAE_API(token_counts)(const qae_token_counts_params* params, void* stream);

uint64_t QAE_API(loss_from_log_probs_workspace_bytes)(const qae_loss_from_log_probs_params* params);
qae_result QAE_API(loss_from_log_probs)(const qae_loss_from_log_probs_params* params, void* stream);

qae_result QAE_API(log_probs_from_logits)(const qae_log_probs_from_logits_params* params,
                                          void* stream);
qae_result QAE_API(merge_softmax_stats)(const qae_merge_softmax_stats_params* params, void* stream);
qae_result QAE_API(log_probs_from_logits_backward)(
    const qae_log_probs_from_logits_backward_params* params, void* stream);

qae_result QAE_API(scale_gradient)(const qae_scale_gradient_params* params, void* stream);

uint64_t QAE_API(loss_from_logits_workspace_bytes)(const qae_loss_from_logits_params* params);
qae_result QAE_API(loss_from_logits)(const qae_loss_from_logits_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* QAE_H */

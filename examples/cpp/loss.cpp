// The loss and its gradient of one batch through kernels/qae.h, as a C++ trainer would call it:
// memory and stream are the caller's, results stay on the device until they are copied. Built and
// run by the Makefile beside it; exit status 0 if everything is as derived by hand below.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "qae.h"

static void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    std::exit(EXIT_FAILURE);
}

// A launcher refuses (above 0, see qae_status) or hands on what CUDA said (below 0, negated).
static void check_launch(qae_result result) {
    if (result < 0) check(static_cast<cudaError_t>(-result), "launch");
    if (result == QAE_OK) return;
    std::fprintf(stderr, "the launcher refused its arguments: %d\n", static_cast<int>(result));
    std::exit(EXIT_FAILURE);
}

// `count` elements on the device, freed with the value.
template <class T>
struct DeviceArray {
    T* data = nullptr;
    size_t count;

    explicit DeviceArray(size_t count) : count(count) {
        check(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T)), "cudaMalloc");
    }
    DeviceArray(const std::vector<T>& values, cudaStream_t stream) : DeviceArray(values.size()) {
        check(cudaMemcpyAsync(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice,
                              stream),
              "copy to the device");
    }
    DeviceArray(const DeviceArray&) = delete;
    ~DeviceArray() { cudaFree(data); }

    std::vector<T> download(cudaStream_t stream) const {
        std::vector<T> values(count);
        check(cudaMemcpyAsync(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost,
                              stream),
              "copy from the device");
        check(cudaStreamSynchronize(stream), "synchronize");
        return values;
    }
};

int main() {
    // Two prompts with four responses each, padded to three slots: a hard one, of which one
    // response succeeds, and an easy one, of which one fails. Every ratio is 1.1.
    constexpr int kResponses = 8, kGroupSize = 4, kWidth = 3;
    const std::vector<float> rewards = {0, 0, 0, 1, 1, 1, 1, 0};
    const std::vector<int32_t> lengths = {3, 2, 3, 1, 2, 3, 2, 2};
    const double num_tokens = 18;
    const std::vector<float> old_log_prob(kResponses * kWidth, -1.0f);
    const std::vector<float> log_prob(kResponses * kWidth, -1.0f + std::log(1.1f));

    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    DeviceArray<float> rewards_there(rewards, stream);
    DeviceArray<int32_t> lengths_there(lengths, stream);
    DeviceArray<float> old_there(old_log_prob, stream), log_prob_there(log_prob, stream);
    DeviceArray<float> gradient(log_prob.size());
    DeviceArray<qae_loss_metrics> metrics(1);

    constexpr float kOff = std::numeric_limits<float>::infinity();
    qae_loss_from_log_probs_params params = {};
    params.groups.rewards = rewards_there.data;
    params.groups.num_responses = kResponses;
    params.groups.num_groups = kResponses / kGroupSize;
    params.groups.group_size = params.groups.max_group_size = kGroupSize;
    params.advantage_options.k = 0.4;
    params.advantage_options.success_threshold = 0.5;
    params.advantage_options.baseline = QAE_BASELINE_QUANTILE_INVERTED_CDF;
    params.advantage_options.scale = QAE_SCALE_STD_UNBIASED;
    params.advantage_source = QAE_ADVANTAGE_FROM_REWARDS;
    params.dtype = params.gradient_dtype = QAE_F32;
    params.layout.num_rows = kResponses;
    params.layout.width = params.layout.row_stride = kWidth;
    params.layout.mask_row_stride = params.layout.gradient_row_stride = kWidth;
    params.layout.num_slots = kResponses * kWidth;
    params.layout.lengths = lengths_there.data;
    params.log_prob = log_prob_there.data;
    params.old_log_prob = old_there.data;
    params.objective = QAE_OBJECTIVE_CLIP;
    params.clip_min = 1.0f - 0.2f;
    params.clip_max = 1.0f + 0.28f;
    params.dual_clip = params.ratio_cap = params.seq_log_ratio_max = kOff;
    params.log_ratio_clamp = 20.0f;
    params.tau_positive = params.tau_negative = 1.0f;
    params.aggregation = QAE_TOKEN_MEAN;
    params.metrics_scope = QAE_METRICS_ALL;
    params.normalizer = num_tokens;
    params.loss_multiplier = params.grad_scale = 1.0;
    params.d_log_prob = gradient.data;
    params.metrics = metrics.data;

    // Once; every further step of the trainer uses the same one.
    DeviceArray<uint8_t> workspace(qae_loss_from_log_probs_workspace_bytes(&params));
    check(cudaMemsetAsync(workspace.data, 0, workspace.count, stream), "zero the workspace");
    params.workspace = workspace.data;
    params.workspace_bytes = workspace.count;
    check_launch(qae_loss_from_log_probs(&params, stream));

    const qae_loss_metrics found = metrics.download(stream)[0];
    const std::vector<float> d_log_prob = gradient.download(stream);
    std::printf("loss %.6f, %d of %d responses active, %d of %d tokens\n", found.loss,
                static_cast<int>(found.active), kResponses, static_cast<int>(found.active_tokens),
                static_cast<int>(found.tokens));

    // The second smallest of four rewards is the 0.4-quantile: 0 and 1. The standard deviations are
    // 0.5, so the lone success has the advantage 2, the lone failure -2, and all others 0.
    const double success = 2.0 * 1.1 / num_tokens, failure = -2.0 * 1.1 / num_tokens;
    const double expected = -(success * lengths[3] + failure * lengths[7]);
    bool is_right = std::fabs(found.loss - expected) < 1e-6 && found.active == 2 &&
                    found.tokens == 18 && found.active_tokens == 3 && found.groups.hard_groups == 1;
    for (int slot = 0; slot < kResponses * kWidth; ++slot) {
        const int row = slot / kWidth;
        const double advantage = row == 3 ? success : row == 7 ? failure : 0;
        const double wanted = slot % kWidth < lengths[row] ? -advantage : 0;
        is_right = is_right && std::fabs(d_log_prob[slot] - wanted) < 1e-6;
    }
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
    std::printf(is_right ? "as derived by hand\n" : "expected a loss of %.6f\n", expected);
    return is_right ? EXIT_SUCCESS : EXIT_FAILURE;
}

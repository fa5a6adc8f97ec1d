// GELU (tanh form): x · σ(2u), u = √(2/π) (x + 0.044715 x³)

#pragma once

#include "lanes.h"

namespace {

inline float sigmoid_2u(float x) { return 1 / (1 + exponential(-1.5957691216f * x * (1 + 0.044715f * x * x))); }

template <class T>
void gelu(const T *x, T *y, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++) y[i] = T(float(x[i]) * sigmoid_2u(x[i]));
}

template <class T>
void gelu_back(const T *x, const T *y_grad, T *x_grad, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        const float v = x[i], s = sigmoid_2u(v);
        const float slope = s + v * s * (1 - s) * 1.5957691216f * (1 + 3 * 0.044715f * v * v);
        x_grad[i] = T(float(y_grad[i]) * slope);
    }
}

}  // namespace

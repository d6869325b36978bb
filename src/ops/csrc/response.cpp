// Local response normalisation y = x·s with s = t^-beta and t = bias + alpha·W(x²), W the sum over `radius`
// channels to either side; its gradient, and the gradients of that.  All from x alone: nothing else is kept.
#include <algorithm>
#include <cmath>

#include "runtime.h"

namespace da {
namespace {
constexpr int64_t kWidth = 64;  // positions of a plane that are worked on together
using Rows = std::vector<float>;  // a row of kWidth values for each channel

// `coefficients` is the tensor of the Python side.
struct Response {
    explicit Response(const float *c) : radius(int64_t(c[0])), alpha(c[1]), beta(c[2]), bias(c[3]) {}
    int64_t radius;
    float alpha, beta, bias;
};

// Some positions of one image: what the three functions do there.
class Block {
  public:
    Block(const Response &r, const int64_t *shape, int64_t image, int64_t part)
        : r_(r), channels_(shape[1]), area_(shape[2] * shape[3]), start_(image * channels_ * area_ + part * kWidth),
          width_(std::min(kWidth, area_ - part * kWidth)) {}

    void forward(const float *xs, float *ys) const {
        const Rows x = load(xs), t = totals(x);
        store(ys, [&](size_t i) { return x[i] / power(t[i]); });
    }

    // dx = dy·s - f·x·W(dy·x·s/t), f = 2·alpha·beta
    void backward(const float *xs, const float *dys, float *dxs) const {
        const Rows x = load(xs), t = totals(x);
        Rows scaled = load(dys);
        each([&](size_t i) { scaled[i] /= power(t[i]); });
        const Rows across = window([&](size_t i) { return scaled[i] * x[i] / t[i]; });
        store(dxs, [&](size_t i) { return scaled[i] - factor() * x[i] * across[i]; });
    }

    // Gradients of Σ u·dx with respect to dy and x.
    void twice(const float *xs, const float *dys, const float *us, float *to_dy, float *to_x) const {
        const Rows x = load(xs), dy = load(dys), u = load(us), t = totals(x);
        Rows s(t.size()), ratio(t.size()), through(t.size());
        each([&](size_t i) { s[i] = 1.0f / power(t[i]), ratio[i] = s[i] / t[i]; });
        const Rows across = window([&](size_t i) { return u[i] * x[i]; });
        each([&](size_t i) { through[i] = across[i] * dy[i] * ratio[i]; });
        store(to_dy, [&](size_t i) { return s[i] * u[i] - factor() * x[i] * ratio[i] * across[i]; });
        const Rows curved = window([&](size_t i) { return through[i] * x[i] / t[i]; });
        const Rows both = window([&](size_t i) { return u[i] * dy[i] * ratio[i]; });
        const Rows other = window([&](size_t i) { return dy[i] * x[i] * ratio[i]; });
        const float bend = 2.0f * r_.alpha * (r_.beta + 1.0f);
        store(to_x, [&](size_t i) {
            return factor() * (x[i] * (bend * curved[i] - both[i]) - u[i] * other[i] - through[i]);
        });
    }

  private:
    float factor() const { return 2.0f * r_.alpha * r_.beta; }

    float power(float t) const {
        if (r_.beta != 0.75f) return std::pow(t, r_.beta);
        const float root = std::sqrt(t);
        return root * std::sqrt(root);
    }

    template <typename Fn>
    void each(Fn fn) const {
        for (size_t i = 0; i < size_t(channels_ * kWidth); ++i) fn(i);
    }

    Rows load(const float *plane) const {
        Rows rows(channels_ * kWidth, 0.0f);
        for (int64_t c = 0; c < channels_; ++c)
            std::copy_n(plane + start_ + c * area_, width_, rows.begin() + c * kWidth);
        return rows;
    }

    template <typename Fn>
    void store(float *plane, Fn fn) const {
        for (int64_t c = 0; c < channels_; ++c)
            for (int64_t i = 0; i < width_; ++i) plane[start_ + c * area_ + i] = fn(size_t(c * kWidth + i));
    }

    // Sums of fn over the window of each channel.
    template <typename Fn>
    Rows window(Fn fn) const {
        Rows values(channels_ * kWidth), sums(channels_ * kWidth, 0.0f);
        each([&](size_t i) { values[i] = fn(i); });
        for (int64_t c = 0; c < channels_; ++c) {
            const int64_t first = std::max<int64_t>(0, c - r_.radius), last = std::min(channels_ - 1, c + r_.radius);
            for (int64_t k = first; k <= last; ++k)
                for (int64_t i = 0; i < kWidth; ++i) sums[c * kWidth + i] += values[k * kWidth + i];
        }
        return sums;
    }

    Rows totals(const Rows &x) const {
        Rows t = window([&](size_t i) { return x[i] * x[i]; });
        each([&](size_t i) { t[i] = r_.bias + r_.alpha * t[i]; });
        return t;
    }

    const Response &r_;
    int64_t channels_, area_, start_, width_;
};

// Runs fn(block) for all positions of all images, on all threads.
void each_block(const float *coefficients, const int64_t *shape, const std::function<void(const Block &)> &fn) {
    const Response response(coefficients);
    const int64_t parts = (shape[2] * shape[3] + kWidth - 1) / kWidth;
    parallel(int(shape[0] * parts), [&](int i) { fn(Block(response, shape, i / parts, i % parts)); });
}

const float *in(void **data, int i) { return static_cast<const float *>(data[i]); }
float *out(void **data, int i) { return static_cast<float *>(data[i]); }
}  // namespace
}  // namespace da

// All tensors (N, C, H, W); coefficients: radius, alpha, beta, bias.
extern "C" {
// x, coefficients -> y
int response_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("response_forward", [&] {
        da::each_block(da::in(data, 1), shapes[0],
                       [&](const da::Block &b) { b.forward(da::in(data, 0), da::out(data, 2)); });
    });
}

// x, dy, coefficients -> dx
int response_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("response_backward", [&] {
        da::each_block(da::in(data, 2), shapes[0], [&](const da::Block &b) {
            b.backward(da::in(data, 0), da::in(data, 1), da::out(data, 3));
        });
    });
}

// x, dy, u, coefficients -> gradients of Σ u·dx with respect to dy and x
int response_twice(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("response_twice", [&] {
        da::each_block(da::in(data, 3), shapes[0], [&](const da::Block &b) {
            b.twice(da::in(data, 0), da::in(data, 1), da::in(data, 2), da::out(data, 4), da::out(data, 5));
        });
    });
}
}

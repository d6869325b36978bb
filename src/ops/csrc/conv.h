// 2-D convolution with the layouts that oneDNN prefers inside and NCHW outside.
#pragma once
#include "runtime.h"

namespace da {
// What a convolution computes: shapes and geometry.  `geometry` is the tensor the Python side passes:
// stride (h, w), dilation (h, w), groups, 1 for pad_mode "same", padding (top, bottom, left, right).
struct Problem {
    static constexpr int kGeometry = 10;  // entries; one more says whether there is a bias
    std::vector<dim_t> x, w, y;                 // NCHW, OIHW (I per group), NCHW
    std::vector<dim_t> strides, dilates, pad_l, pad_r;
    dim_t groups;
    bool bias;

    Problem(const int64_t *x, const int64_t *w, const int64_t *geometry, bool bias);
    std::vector<int64_t> key(int64_t kind) const;
    std::vector<dim_t> weight_dims() const;     // GOIHW when grouped
    int weight_tag() const { return groups > 1 ? kGoihw : kNchw; }
};

// `y_tag` asks for a given layout of the output (kAny: the library's choice).
struct Forward {
    explicit Forward(const Problem &p, int y_tag = kAny);
    void run(const void *x, const void *w, const void *bias, void *y) const;          // y in NCHW
    void run_blocked(const void *x, const void *w, const void *bias, void *y) const;  // y as y_md()
    ConstHandle y_md() const { return primitive->md(kQueryDestination); }
    std::unique_ptr<Primitive> primitive;
    std::unique_ptr<Reorder> in, weights, out;
    std::unique_ptr<Layout> bias;
};
struct BackwardWeights {
    explicit BackwardWeights(const Problem &p, int dy_tag = kAny);
    // `dy` has the layout dy_md().
    void run(const void *x, const void *dy, void *dw, void *db) const;
    ConstHandle dy_md() const { return primitive->md(kQueryDiffDestination); }
    std::unique_ptr<Primitive> primitive;
    std::unique_ptr<Reorder> in, weights, dy_in;
    std::unique_ptr<Layout> bias;
};
struct BackwardData {
    BackwardData(const Problem &p, ConstHandle dy_md);
    // `dy` has the layout given to the constructor.
    void run(const void *dy, const void *w, void *dx) const;
    std::unique_ptr<Primitive> primitive;
    std::unique_ptr<Reorder> dy_in, weights, out;
};

std::shared_ptr<Forward> forward(const Problem &p, int y_tag = kAny);
std::shared_ptr<BackwardWeights> backward_weights(const Problem &p, int dy_tag = kAny);
// `dy_tag` kNchw: dy arrives in NCHW; otherwise as backward_weights(p, dy_tag) wants it.
std::shared_ptr<BackwardData> backward_data(const Problem &p, int dy_tag);
}  // namespace da

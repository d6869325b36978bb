#include "conv.h"

namespace da {
namespace {
// Shapes remembered, per kind.  The caches are never destroyed: oneDNN may be gone before they would be.
constexpr size_t kPrimitives = 256;

dim_t extent(dim_t in, dim_t kernel, dim_t stride, dim_t dilation, dim_t pad) {
    return (in + pad - dilation * (kernel - 1) - 1) / stride + 1;
}

// Primitives are made for the pool's width, whatever the calling thread is set to.
struct Concurrency {
    Concurrency() {
        DA_CHECK(threadpool_interop_get_max_concurrency(&before));
        DA_CHECK(threadpool_interop_set_max_concurrency(threads()));
    }
    ~Concurrency() { dnnl_.threadpool_interop_set_max_concurrency(before); }
    int before = 0;
};

std::unique_ptr<Primitive> forward_primitive(const Problem &p, int y_tag) {
    Layout x(p.x, kAny), w(p.weight_dims(), kAny), b({p.w[0]}, kA), y(p.y, y_tag);
    Handle desc = nullptr;
    DA_CHECK(convolution_forward_primitive_desc_create(
        &desc, engine(), kForwardTraining, kConvolutionDirect, x, w, p.bias ? ConstHandle(b) : nullptr, y,
        p.strides.data(), p.dilates.data(), p.pad_l.data(), p.pad_r.data(), attributes()));
    return std::make_unique<Primitive>(desc);
}
}  // namespace

Problem::Problem(const int64_t *xs, const int64_t *ws, const int64_t *g, bool bias)
    : x(xs, xs + 4), w(ws, ws + 4), y(4), strides(g, g + 2), dilates{g[2] - 1, g[3] - 1}, groups(g[4]), bias(bias) {
    y[0] = x[0];
    y[1] = w[0];
    for (int i = 0; i < 2; ++i) {
        const dim_t in = x[2 + i], kernel = w[2 + i];
        dim_t before = g[6 + 2 * i], after = g[7 + 2 * i];
        if (g[5]) {
            y[2 + i] = (in + strides[i] - 1) / strides[i];
            const dim_t total = (y[2 + i] - 1) * strides[i] + g[2 + i] * (kernel - 1) + 1 - in;
            before = total > 0 ? total / 2 : 0;
            after = total > 0 ? total - before : 0;
        } else {
            y[2 + i] = extent(in, kernel, strides[i], g[2 + i], before + after);
        }
        pad_l.push_back(before);
        pad_r.push_back(after);
    }
}

std::vector<int64_t> Problem::key(int64_t kind) const {
    std::vector<int64_t> key{kind, groups, bias};
    for (const auto *v : {&x, &w, &y, &strides, &dilates, &pad_l, &pad_r}) key.insert(key.end(), v->begin(), v->end());
    return key;
}

std::vector<dim_t> Problem::weight_dims() const {
    if (groups == 1) return w;
    return {groups, w[0] / groups, w[1], w[2], w[3]};
}

Forward::Forward(const Problem &p, int y_tag) : primitive(forward_primitive(p, y_tag)) {
    in = std::make_unique<Reorder>(Layout(p.x, kNchw), primitive->md(kQuerySource));
    weights = std::make_unique<Reorder>(Layout(p.weight_dims(), p.weight_tag()), primitive->md(kQueryWeights));
    out = std::make_unique<Reorder>(y_md(), Layout(p.y, kNchw));
    if (p.bias) bias = std::make_unique<Layout>(std::vector<dim_t>{p.w[0]}, kA);
}

void Forward::run_blocked(const void *x, const void *w, const void *b, void *y) const {
    std::unique_ptr<Buffer> x_buffer, w_buffer;
    void *xs = in->convert(x, x_buffer), *ws = weights->convert(w, w_buffer);
    const Primitive::Operand xo{kArgSource, primitive->md(kQuerySource), xs};
    const Primitive::Operand wo{kArgWeights, primitive->md(kQueryWeights), ws};
    const Primitive::Operand yo{kArgDestination, y_md(), y};
    if (bias)
        primitive->run({xo, wo, {kArgBias, *bias, const_cast<void *>(b)}, yo});
    else
        primitive->run({xo, wo, yo});
}

void Forward::run(const void *x, const void *w, const void *b, void *y) const {
    if (!out->needed()) return run_blocked(x, w, b, y);
    Buffer blocked(bytes(y_md()));
    run_blocked(x, w, b, blocked.get());
    out->run(blocked.get(), y);
}

BackwardWeights::BackwardWeights(const Problem &p, int dy_tag) {
    auto hint = forward_primitive(p, dy_tag);
    Layout x(p.x, kAny), w(p.weight_dims(), kAny), b({p.w[0]}, kA), dy(p.y, dy_tag);
    Handle desc = nullptr;
    DA_CHECK(convolution_backward_weights_primitive_desc_create(
        &desc, engine(), kConvolutionDirect, x, w, p.bias ? ConstHandle(b) : nullptr, dy, p.strides.data(),
        p.dilates.data(), p.pad_l.data(), p.pad_r.data(), hint->desc(), attributes()));
    primitive = std::make_unique<Primitive>(desc);
    in = std::make_unique<Reorder>(Layout(p.x, kNchw), primitive->md(kQuerySource));
    weights = std::make_unique<Reorder>(primitive->md(kQueryDiffWeights), Layout(p.weight_dims(), p.weight_tag()));
    dy_in = std::make_unique<Reorder>(Layout(p.y, kNchw), dy_md());
    if (p.bias) bias = std::make_unique<Layout>(std::vector<dim_t>{p.w[0]}, kA);
}

void BackwardWeights::run(const void *x, const void *dy, void *dw, void *db) const {
    std::unique_ptr<Buffer> x_buffer, w_buffer;
    void *xs = in->convert(x, x_buffer), *ws = dw;
    if (weights->needed()) {
        w_buffer = std::make_unique<Buffer>(bytes(primitive->md(kQueryDiffWeights)));
        ws = w_buffer->get();
    }
    const Primitive::Operand xo{kArgSource, primitive->md(kQuerySource), xs};
    const Primitive::Operand wo{kArgDiffWeights, primitive->md(kQueryDiffWeights), ws};
    const Primitive::Operand yo{kArgDiffDestination, dy_md(), const_cast<void *>(dy)};
    if (bias)
        primitive->run({xo, yo, wo, {kArgDiffBias, *bias, db}});
    else
        primitive->run({xo, yo, wo});
    if (weights->needed()) weights->run(ws, dw);
}

BackwardData::BackwardData(const Problem &p, ConstHandle from) {
    auto hint = forward_primitive(p, kAny);
    Layout x(p.x, kAny), w(p.weight_dims(), kAny), dy(p.y, kAny);
    Handle desc = nullptr;
    DA_CHECK(convolution_backward_data_primitive_desc_create(
        &desc, engine(), kConvolutionDirect, x, w, dy, p.strides.data(), p.dilates.data(), p.pad_l.data(),
        p.pad_r.data(), hint->desc(), attributes()));
    primitive = std::make_unique<Primitive>(desc);
    dy_in = std::make_unique<Reorder>(from, primitive->md(kQueryDiffDestination));
    weights = std::make_unique<Reorder>(Layout(p.weight_dims(), p.weight_tag()), primitive->md(kQueryWeights));
    out = std::make_unique<Reorder>(primitive->md(kQueryDiffSource), Layout(p.x, kNchw));
}

void BackwardData::run(const void *dy, const void *w, void *dx) const {
    std::unique_ptr<Buffer> dy_buffer, w_buffer, x_buffer;
    void *dys = dy_in->convert(dy, dy_buffer), *ws = weights->convert(w, w_buffer), *xs = dx;
    if (out->needed()) {
        x_buffer = std::make_unique<Buffer>(bytes(primitive->md(kQueryDiffSource)));
        xs = x_buffer->get();
    }
    primitive->run({{kArgDiffDestination, primitive->md(kQueryDiffDestination), dys},
                    {kArgWeights, primitive->md(kQueryWeights), ws},
                    {kArgDiffSource, primitive->md(kQueryDiffSource), xs}});
    if (out->needed()) out->run(xs, dx);
}

std::shared_ptr<Forward> forward(const Problem &p, int y_tag) {
    static auto &cache = *new Cache<Forward>(kPrimitives);
    return cache.get(p.key(y_tag), [&] {
        Concurrency width;
        return std::make_shared<Forward>(p, y_tag);
    });
}

std::shared_ptr<BackwardWeights> backward_weights(const Problem &p, int dy_tag) {
    static auto &cache = *new Cache<BackwardWeights>(kPrimitives);
    return cache.get(p.key(dy_tag), [&] {
        Concurrency width;
        return std::make_shared<BackwardWeights>(p, dy_tag);
    });
}

std::shared_ptr<BackwardData> backward_data(const Problem &p, int dy_tag) {
    static auto &cache = *new Cache<BackwardData>(kPrimitives);
    return cache.get(p.key(dy_tag), [&] {
        if (dy_tag == kNchw) {
            Concurrency width;
            return std::make_shared<BackwardData>(p, Layout(p.y, kNchw));
        }
        auto sibling = backward_weights(p, dy_tag);
        Concurrency width;
        return std::make_shared<BackwardData>(p, sibling->dy_md());
    });
}
}  // namespace da

// What MindSpore calls: parameters are the inputs and then the outputs, `shapes` likewise.
extern "C" {
// x, w, [bias], geometry -> y
int conv_forward(int count, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("conv_forward", [&] {
        const bool bias = count == 5;
        const auto *geometry = static_cast<const int64_t *>(data[count - 2]);
        const da::Problem p(shapes[0], shapes[1], geometry, bias);
        da::forward(p)->run(data[0], data[1], bias ? data[2] : nullptr, data[count - 1]);
    });
}

// x, dy, geometry -> dw, [db], dy as the kernels want it (one element when that is NCHW)
int conv_backward_weights(int count, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("conv_backward_weights", [&] {
        const bool bias = count == 6;
        const da::Problem p(shapes[0], shapes[3], static_cast<const int64_t *>(data[2]), bias);
        const auto op = da::backward_weights(p);
        const void *dy = data[1];
        if (op->dy_in->needed()) {
            op->dy_in->run(dy, data[count - 1]);
            dy = data[count - 1];
        }
        op->run(data[0], dy, data[3], bias ? data[4] : nullptr);
    });
}

// x (for its shape), w, dy, dy as conv_backward_weights left it (one element: use dy), geometry -> dx
int conv_backward_data(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("conv_backward_data", [&] {
        const auto *geometry = static_cast<const int64_t *>(data[4]);
        const bool converted = shapes[3][0] > 1;
        const bool bias = geometry[da::Problem::kGeometry];
        const da::Problem p(shapes[0], shapes[1], geometry, bias);
        da::backward_data(p, converted ? da::kAny : da::kNchw)->run(data[converted ? 3 : 2], data[1], data[5]);
    });
}

// Floats that conv_backward_weights' last output needs; negative when oneDNN has no such convolution.
int64_t da_converted_size(const int64_t *x, const int64_t *w, const int64_t *geometry, int bias) {
    int64_t size = -1;
    da::guarded("convolution", [&] {
        const auto op = da::backward_weights(da::Problem(x, w, geometry, bias != 0));
        size = op->dy_in->needed() ? int64_t(da::bytes(op->dy_md()) / sizeof(float)) : 1;
    });
    return size;
}

// Names of the kernels chosen: forward, weight gradient, data gradient.
int da_describe(const int64_t *x, const int64_t *w, const int64_t *geometry, int bias, char *out, int size) {
    return da::guarded("convolution", [&] {
        const da::Problem p(x, w, geometry, bias != 0);
        snprintf(out, size, "%s %s %s", da::forward(p)->primitive->implementation(),
                 da::backward_weights(p)->primitive->implementation(),
                 da::backward_data(p, da::kNchw)->primitive->implementation());
    });
}

// Loads oneDNN's functions from the library already in the process.  Returns "" or the reason it cannot be used.
const char *da_start(const char *library, int threads) {
    static std::string reason;
    reason = da::load(library);
    if (!reason.empty()) return reason.c_str();
    if (da::guarded("start", [&] { da::start(threads); })) reason = "oneDNN could not create an engine";
    return reason.c_str();
}
int da_block() { return da::block(); }
}

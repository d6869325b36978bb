// A depthwise separable layer in one go: convolution, batch normalisation and activation, then a depthwise
// convolution with the same.  All between stays in the blocked layout; the activated input of the depthwise
// convolution exists tile by tile only, in the cache.
//
// z1 is what the first convolution gives, z2 what the depthwise one gives.
#include "depthwise.h"

namespace da {
namespace {
// What follows the first convolution; continues the integers of Problem.
struct Tail {
    Norm norm;
    Activation activation[2];
    const int64_t *depthwise;  // the integers of its Problem
    float epsilon[2], momentum[2];
    Tail(const int64_t *g, const float *c)
        : norm(Norm(g[11])), activation{Activation(g[12]), Activation(g[13])}, depthwise(g + 14),
          epsilon{c[0], c[2]}, momentum{c[1], c[3]} {}
};

struct Shape {
    Depthwise d;
    Tiles in, out;  // z1, z2
    Shape(const Problem &p, const Problem &depthwise, int block)
        : d(depthwise), in(p.y[0], p.y[1], d.h * d.w, block), out(p.y[0], p.y[1], d.oh * d.ow, block) {}
    // Where the planes of a tile begin in y.
    dim_t planes(int job, int block) const {
        return (job / out.blocks * out.c + job % out.blocks * block) * out.area;
    }
};

// One tile of z1, as the depthwise convolution sees it.
template <int B>
struct Input {
    using V = typename Vector<B>::type;
    const V *z;
    const V scale, shift;
    const Activation activation;
    const dim_t w;
    Input(const Shape &s, const Tail &t, const Affine &affine, dim_t block, const float *tile)
        : z(reinterpret_cast<const V *>(tile)), scale(at<B>(affine.scale, block)), shift(at<B>(affine.shift, block)),
          activation(t.activation[0]), w(s.d.w) {}
    void operator()(dim_t i, V *to) const {
        const V *from = z + i * w;
        for (dim_t j = 0; j < w; ++j) to[j] = activate<B>(from[j] * scale + shift, activation);
    }
    // Row i of the gradient, through the activation.
    void back(dim_t i, const V *gradient, V *to) const {
        const V *from = z + i * w;
        for (dim_t j = 0; j < w; ++j) to[j] = activate_back<B>(from[j] * scale + shift, gradient[j], activation);
    }
    // Inside the border that the forward pass needs.
    Bordered<B> bordered(const Depthwise &d) const {
        return Bordered<B>(d.h, d.w, d.top, d.left, (d.oh - 1) * d.stride + d.kernel,
                           (d.ow - 1) * d.stride + d.kernel, *this);
    }
};

// z1 -> z2 of one tile.
template <int B, int kernel, int stride>
void convolve(const Depthwise &d, const Input<B> &input, const typename Vector<B>::type *w, float *z2) {
    correlate<B, kernel, stride>(input.bordered(d), w, d.oh, d.ow, reinterpret_cast<typename Vector<B>::type *>(z2));
}

// z2 -> y of one tile.
template <int B>
void finish(const Shape &s, const Affine &affine, Activation activation, int job, const float *z2, float *y) {
    using V = typename Vector<B>::type;
    const V scale = at<B>(affine.scale, job % s.out.blocks), shift = at<B>(affine.shift, job % s.out.blocks);
    const V *tile = reinterpret_cast<const V *>(z2) + job * s.out.area;
    Buffer buffer(s.out.area * sizeof(V));
    V *out = static_cast<V *>(buffer.get());
    for (dim_t i = 0; i < s.out.area; ++i) out[i] = activate<B>(tile[i] * scale + shift, activation);
    to_planes<B>(buffer.floats(), s.out.channels(job, B), s.out.area, y + s.planes(job, B));
}

// dy -> dv2 of one tile: the gradient of the second normalisation's output.
template <int B>
void start(const Shape &s, const Affine &affine, Activation activation, int job, const float *dy, const float *z2,
           float *dv2) {
    using V = typename Vector<B>::type;
    from_planes<B>(dy + s.planes(job, B), s.out.channels(job, B), s.out.area, dv2);
    if (activation == kLinear) return;
    const V scale = at<B>(affine.scale, job % s.out.blocks), shift = at<B>(affine.shift, job % s.out.blocks);
    const V *tile = reinterpret_cast<const V *>(z2);
    V *d = reinterpret_cast<V *>(dv2);
    for (dim_t i = 0; i < s.out.area; ++i) d[i] = activate_back<B>(tile[i] * scale + shift, d[i], activation);
}

// Gradients of the depthwise part.
template <int B>
struct Backward {
    using V = typename Vector<B>::type;
    const Shape &s;
    const Tail &t;
    const Affine &first;
    const std::vector<float> taps;
    std::vector<float> dw;  // per tile, a vector for each tap

    // dv2 of a tile, z1 and z2 -> dv1, the gradient of the first normalisation's output; leaves the weight
    // gradient in dw.
    template <int kernel, int stride>
    void tile(int job, const NormGradient<B> &norm, const float *dv2, const float *z1, const float *z2, float *dv1) {
        const Depthwise &d = s.d;
        const dim_t b = job % s.in.blocks, above = stride == 1 ? kernel - 1 - d.top : kernel / 2,
                    left = stride == 1 ? kernel - 1 - d.left : kernel / 2, pairs = (d.left + d.w + 1) / 2,
                    rows = stride == 1 ? d.h + kernel - 1 : (d.top + d.h + 1) / 2 + kernel / 2,
                    columns = stride == 1 ? d.w + kernel - 1 : pairs + kernel / 2;
        const Input<B> input(s, t, first, b, z1);
        const Bordered<B> gradient(d.oh, d.ow, above, left, rows, columns, [&](dim_t i, V *to) {
            const dim_t from = i * d.ow * B;
            norm.apply(b, d.ow, dv2 + from, z2 + from, reinterpret_cast<float *>(to));
        });
        const V *w = reinterpret_cast<const V *>(taps.data()) + b * d.taps();
        correlate_weights<B, kernel, stride>(input.bordered(d), gradient.row(above) + left, gradient.line, d.oh, d.ow,
                                             reinterpret_cast<V *>(dw.data()) + job * d.taps());
        V *out = reinterpret_cast<V *>(dv1);
        if constexpr (stride == 1) {  // a correlation with the taps turned round
            V turned[kernel * kernel];
            for (int k = 0; k < kernel * kernel; ++k) turned[k] = w[kernel * kernel - 1 - k];
            correlate<B, kernel, 1>(gradient, turned, d.h, d.w, out);
            for (dim_t i = 0; i < d.h; ++i) input.back(i, out + i * d.w, out + i * d.w);
        } else {
            Buffer buffer(2 * pairs * sizeof(V));
            V *row = static_cast<V *>(buffer.get());
            for (dim_t i = 0; i < d.h; ++i) {
                spread<B, kernel>(gradient, w, d.top + i, pairs, row);
                input.back(i, row + d.left, out + i * d.w);
            }
        }
    }

    // (C, k, k)
    void weights(float *out) const {
        const dim_t taps = s.d.taps();
        for (dim_t c = 0; c < s.in.c; ++c)
            for (dim_t k = 0; k < taps; ++k) {
                double sum = 0;
                for (dim_t n = 0; n < s.in.n; ++n) sum += dw[((n * s.in.blocks + c / B) * taps + k) * B + c % B];
                out[c * taps + k] = float(sum);
            }
    }
};

// Calls body(kernel, stride) with both as compile-time constants.
template <typename Body>
void for_kernel(const Depthwise &d, const Body &body) {
    using std::integral_constant;
    if (d.kernel == 3)
        d.stride == 1 ? body(integral_constant<int, 3>(), integral_constant<int, 1>())
                      : body(integral_constant<int, 3>(), integral_constant<int, 2>());
    else
        d.stride == 1 ? body(integral_constant<int, 5>(), integral_constant<int, 1>())
                      : body(integral_constant<int, 5>(), integral_constant<int, 2>());
}

// Batch normalisation treats channels apart.  So all passes over some blocks of channels are made before the
// next blocks' turn: their tensors stay in the cache meanwhile.
struct Group {
    dim_t first, blocks, begin, end;  // blocks, and the channels in them
    dim_t images, total;
    int count() const { return int(images * blocks); }
    int tile(int i) const { return int(i / blocks * total + first + i % blocks); }
};
template <int B, typename Body>
void for_groups(const Tiles &t, const Body &body) {
    constexpr dim_t kBytes = 512 << 10;
    const dim_t size = t.n * t.area * B * dim_t(sizeof(float)), blocks = std::max<dim_t>(1, kBytes / size);
    for (dim_t b = 0; b < t.blocks; b += blocks) {
        const dim_t next = std::min(b + blocks, t.blocks);
        body(Group{b, next - b, b * B, std::min(next * B, t.c), t.n, t.blocks});
    }
}

template <int B>
int layout() {
    return B == 16 ? kNchw16c : kNchw8c;
}

template <int B>
void separable_forward(void **data, int64_t **shapes) {
    using V = typename Vector<B>::type;
    const auto *geometry = static_cast<const int64_t *>(data[11]);
    const Problem p(shapes[0], shapes[1], geometry, false);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    const Tail t(geometry, floats(12));
    const Shape s(p, Problem(p.y.data(), shapes[2], t.depthwise, false), B);
    float *y = floats(13), *z1 = floats(14), *z2 = floats(15), *statistics = floats(16);
    forward(p, layout<B>())->run_blocked(data[0], data[1], nullptr, z1);
    const Normalisation norm1{t.norm,    t.epsilon[0], t.momentum[0], floats(3),  floats(4),
                              floats(5), floats(6),    statistics,    floats(17), floats(18)};
    const Normalisation norm2{t.norm,    t.epsilon[1], t.momentum[1],            floats(7),  floats(8),
                              floats(9), floats(10),   statistics + 2 * s.in.c, floats(19), floats(20)};
    const dim_t size1 = s.in.area * B, size2 = s.out.area * B;
    Moments<B> moments1(s.in), moments2(s.out);
    Affine first(s.in.padded(B)), second(s.in.padded(B));
    const auto taps = by_tap<B>(floats(2), s.in.c, s.in.blocks, s.d.taps());
    for_groups<B>(s.in, [&](const Group &group) {
        if (t.norm == kTraining) parallel(group.count(), [&](int i) {
            moments1.add(group.tile(i), z1 + group.tile(i) * size1);
        });
        norm1.settle(s.in, moments1, group.begin, group.end, first);
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            const dim_t b = job % s.in.blocks;
            const Input<B> input(s, t, first, b, z1 + job * size1);
            for_kernel(s.d, [&](auto kernel, auto stride) {
                convolve<B, kernel, stride>(s.d, input, reinterpret_cast<const V *>(taps.data()) + b * s.d.taps(),
                                            z2 + job * size2);
            });
            if (t.norm == kTraining) moments2.add(job, z2 + job * size2);
        });
        norm2.settle(s.out, moments2, group.begin, group.end, second);
        parallel(group.count(), [&](int i) { finish<B>(s, second, t.activation[1], group.tile(i), z2, y); });
    });
}

template <int B>
void separable_backward(void **data, int64_t **shapes) {
    const auto *geometry = static_cast<const int64_t *>(data[10]);
    const Problem p(shapes[0], shapes[12], geometry, false);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    const Tail t(geometry, floats(11));
    const Shape s(p, Problem(p.y.data(), shapes[5], t.depthwise, false), B);
    const float *dy = floats(1), *z1 = floats(2), *z2 = floats(3), *statistics = floats(4);
    float *dz1 = floats(18);
    const dim_t size1 = s.in.area * B, size2 = s.out.area * B;
    const Affine first = affine_again(s.in, B, t.norm, floats(6), floats(7), statistics);
    const Affine second = affine_again(s.out, B, t.norm, floats(8), floats(9), statistics + 2 * s.in.c);
    NormGradient<B> norm1(s.in, t.norm, first), norm2(s.out, t.norm, second);

    Backward<B> backward{s, t, first, by_tap<B>(floats(5), s.in.c, s.in.blocks, s.d.taps()),
                         std::vector<float>(s.in.count() * s.d.taps() * B)};
    for_groups<B>(s.in, [&](const Group &group) {
        Buffer gradient(group.count() * size2 * sizeof(float));
        float *dv2 = gradient.floats();
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            start<B>(s, second, t.activation[1], job, dy, z2 + job * size2, dv2 + i * size2);
            norm2.add(job, dv2 + i * size2, z2 + job * size2);
        });
        norm2.settle(group.begin, group.end, floats(16), floats(17));
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            for_kernel(s.d, [&](auto kernel, auto stride) {
                backward.template tile<kernel, stride>(job, norm2, dv2 + i * size2, z1 + job * size1,
                                                       z2 + job * size2, dz1 + job * size1);
            });
            norm1.add(job, dz1 + job * size1, z1 + job * size1);
        });
        norm1.settle(group.begin, group.end, floats(14), floats(15));
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            norm1.apply(job % s.in.blocks, s.in.area, dz1 + job * size1, z1 + job * size1, dz1 + job * size1);
        });
    });
    backward.weights(floats(13));
    backward_weights(p, layout<B>())->run(data[0], dz1, data[12], nullptr);
}
}  // namespace
}  // namespace da

extern "C" {
// x, w, depthwise w, then gamma, beta, moving mean and moving variance of both normalisations, geometry,
// coefficients (epsilon and momentum of both)
// -> y, z1 and z2 blocked, statistics (mean and 1 / deviation of both), new moving mean and variance of both.
int separable_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("separable_forward", [&] {
        da::block() == 16 ? da::separable_forward<16>(data, shapes) : da::separable_forward<8>(data, shapes);
    });
}

// x, dy, z1, z2, statistics, depthwise w, gamma and beta of both, geometry, coefficients
// -> dw, depthwise dw, dgamma and dbeta of both, dz1 blocked, from which stage_backward_data makes dx
int separable_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("separable_backward", [&] {
        da::block() == 16 ? da::separable_backward<16>(data, shapes) : da::separable_backward<8>(data, shapes);
    });
}
}

// A depthwise separable layer in one go: convolution, batch normalisation and activation, then a depthwise 3x3
// convolution (padding 1) and batch normalisation.  All between stays in the blocked layout; the activated
// input of the depthwise convolution exists tile by tile only, in the cache.
//
// z1 is what the first convolution gives, z2 what the depthwise one gives.
#include <algorithm>

#include "normalise.h"

namespace da {
namespace {
constexpr int kTaps = 9;  // of the depthwise kernel, row by row

// What follows the first convolution; continues the integers of Problem.
struct Tail {
    Norm norm;
    Activation activation;
    dim_t stride;
    float epsilon[2], momentum[2];
    Tail(const int64_t *g, const float *c)
        : norm(Norm(g[11])), activation(Activation(g[12])), stride(g[13]), epsilon{c[0], c[2]}, momentum{c[1], c[3]} {}
};

struct Shape {
    dim_t h, w, oh, ow;
    Tiles in, out;  // z1, z2
    Shape(const Problem &p, const Tail &t, int block)
        : h(p.y[2]), w(p.y[3]), oh((h - 1) / t.stride + 1), ow((w - 1) / t.stride + 1),
          in(p.y[0], p.y[1], h * w, block), out(p.y[0], p.y[1], oh * ow, block) {}
    // Where the planes of a tile begin in y.
    dim_t planes(int job, int block) const {
        return (job / out.blocks * out.c + job % out.blocks * block) * out.area;
    }
};

// The depthwise weights, (C, 3, 3), as one vector per block and tap.
template <int B>
std::vector<float> by_tap(const float *w, dim_t channels, dim_t blocks) {
    std::vector<float> taps(blocks * kTaps * B, 0);
    for (dim_t c = 0; c < channels; ++c)
        for (int k = 0; k < kTaps; ++k) taps[(c / B * kTaps + k) * B + c % B] = w[c * kTaps + k];
    return taps;
}

// A tile inside a border of zeros, one position wide.
template <int B>
class Bordered {
  public:
    using V = typename Vector<B>::type;
    // fill(i, to) writes row i of the tile.
    template <typename Fill>
    Bordered(dim_t height, dim_t width, const Fill &fill) : line(width + 2), buffer_((height + 2) * line * sizeof(V)) {
        memset(row(0), 0, line * sizeof(V));
        memset(row(height + 1), 0, line * sizeof(V));
        for (dim_t i = 0; i < height; ++i) {
            V *to = row(i + 1);
            to[0] = to[width + 1] = V{};
            fill(i, to + 1);
        }
    }
    V *row(dim_t i) const { return static_cast<V *>(buffer_.get()) + i * line; }
    const dim_t line;

  private:
    Buffer buffer_;
};

// out[i][j] = sum over rows a and columns b of w[a][b] * tile[i * stride + a][j * stride + b]
template <int B, int stride>
void correlate(const Bordered<B> &tile, const typename Vector<B>::type *w, dim_t oh, dim_t ow,
               typename Vector<B>::type *out) {
    using V = typename Vector<B>::type;
    const V w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7], w8 = w[8];
    for (dim_t i = 0; i < oh; ++i, out += ow) {
        const V *r0 = tile.row(i * stride), *r1 = r0 + tile.line, *r2 = r1 + tile.line;
        for (dim_t j = 0; j < ow; ++j, r0 += stride, r1 += stride, r2 += stride) {
            const V a = r0[0] * w0 + r0[1] * w1 + r0[2] * w2;
            const V b = r1[0] * w3 + r1[1] * w4 + r1[2] * w5;
            const V c = r2[0] * w6 + r2[1] * w7 + r2[2] * w8;
            out[j] = a + b + c;
        }
    }
}

// sums[a][b] = sum over i and j of d[i][j] * tile[i * stride + a][j * stride + b]; d has `pitch` positions a row.
template <int B, int stride>
void correlate_weights(const Bordered<B> &tile, const typename Vector<B>::type *d, dim_t pitch, dim_t oh, dim_t ow,
                       typename Vector<B>::type *sums) {
    using V = typename Vector<B>::type;
    V s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{};
    for (dim_t i = 0; i < oh; ++i, d += pitch) {
        const V *r0 = tile.row(i * stride), *r1 = r0 + tile.line, *r2 = r1 + tile.line;
        for (dim_t j = 0; j < ow; ++j, r0 += stride, r1 += stride, r2 += stride) {
            const V g = d[j];
            s0 += g * r0[0], s1 += g * r0[1], s2 += g * r0[2];
            s3 += g * r1[0], s4 += g * r1[1], s5 += g * r1[2];
            s6 += g * r2[0], s7 += g * r2[1], s8 += g * r2[2];
        }
    }
    const V all[kTaps] = {s0, s1, s2, s3, s4, s5, s6, s7, s8};
    memcpy(sums, all, sizeof(all));
}

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
          activation(t.activation), w(s.w) {}
    void operator()(dim_t i, V *to) const {
        const V *from = z + i * w;
        for (dim_t j = 0; j < w; ++j) to[j] = activate<B>(from[j] * scale + shift, activation);
    }
    // Row i of the gradient, through the activation.
    void back(dim_t i, const V *gradient, V *to) const {
        const V *from = z + i * w;
        for (dim_t j = 0; j < w; ++j) to[j] = activate_back<B>(from[j] * scale + shift, gradient[j], activation);
    }
};

// z1 -> z2 of one tile.
template <int B>
void depthwise(const Shape &s, const Tail &t, const Affine &affine, const std::vector<float> &taps, int job,
               const float *z1, float *z2) {
    using V = typename Vector<B>::type;
    const dim_t b = job % s.in.blocks;
    const Bordered<B> input(s.h, s.w, Input<B>(s, t, affine, b, z1));
    const V *w = reinterpret_cast<const V *>(taps.data()) + b * kTaps;
    (t.stride == 1 ? correlate<B, 1> : correlate<B, 2>)(input, w, s.oh, s.ow, reinterpret_cast<V *>(z2));
}

// z2 -> y of one tile.
template <int B>
void finish(const Shape &s, const Affine &affine, int job, const float *z2, float *y) {
    using V = typename Vector<B>::type;
    const V scale = at<B>(affine.scale, job % s.out.blocks), shift = at<B>(affine.shift, job % s.out.blocks);
    const V *tile = reinterpret_cast<const V *>(z2) + job * s.out.area;
    Buffer buffer(s.out.area * sizeof(V));
    V *out = static_cast<V *>(buffer.get());
    for (dim_t i = 0; i < s.out.area; ++i) out[i] = tile[i] * scale + shift;
    to_planes<B>(buffer.floats(), s.out.channels(job, B), s.out.area, y + s.planes(job, B));
}

// Gradients of the depthwise part.
template <int B>
struct Backward {
    using V = typename Vector<B>::type;
    const Shape &s;
    const Tail &t;
    const Affine &first;
    const std::vector<float> taps;
    std::vector<float> dw;  // per tile, 9 vectors

    // dv2 of a tile (gradient of the second normalisation's output), z1 and z2 -> dv1, the gradient of the
    // first normalisation's output; leaves the weight gradient in dw.
    void tile(int job, const NormGradient<B> &norm, const float *dv2, const float *z1, const float *z2, float *dv1) {
        const dim_t b = job % s.in.blocks;
        const Input<B> input(s, t, first, b, z1);
        const Bordered<B> x(s.h, s.w, input);
        const Bordered<B> d(s.oh, s.ow, [&](dim_t i, V *to) {
            const dim_t from = i * s.ow * B;
            norm.apply(b, s.ow, dv2 + from, z2 + from, reinterpret_cast<float *>(to));
        });
        const V *w = reinterpret_cast<const V *>(taps.data()) + b * kTaps;
        V *sums = reinterpret_cast<V *>(dw.data()) + job * kTaps;
        if (t.stride == 1) {
            correlate_weights<B, 1>(x, d.row(1) + 1, d.line, s.oh, s.ow, sums);
            dense(input, d, w, reinterpret_cast<V *>(dv1));
        } else {
            correlate_weights<B, 2>(x, d.row(1) + 1, d.line, s.oh, s.ow, sums);
            strided(input, d, w, reinterpret_cast<V *>(dv1));
        }
    }

    // Stride 1: the gradient is a correlation of dz with the taps turned round.
    void dense(const Input<B> &input, const Bordered<B> &d, const V *w, V *out) const {
        V turned[kTaps];
        for (int k = 0; k < kTaps; ++k) turned[k] = w[kTaps - 1 - k];
        correlate<B, 1>(d, turned, s.h, s.w, out);
        for (dim_t i = 0; i < s.h; ++i) input.back(i, out + i * s.w, out + i * s.w);
    }

    // Stride 2: a row of dz reaches the rows 2i, 2i + 1 and 2i + 2 of the bordered gradient; what it adds to
    // the last is carried over to the next row of dz.
    void strided(const Input<B> &input, const Bordered<B> &d, const V *w, V *out) const {
        const dim_t width = 2 * (s.ow + 1);
        Buffer buffer(3 * width * sizeof(V));
        V *even = static_cast<V *>(buffer.get()), *odd = even + width, *carry = odd + width;
        memset(carry, 0, width * sizeof(V));
        for (dim_t i = 0; i < s.oh; ++i) {
            const V *row = d.row(i + 1);
            for (dim_t j = 0; j <= s.ow; ++j) {
                const V here = row[j + 1], before = row[j];
                even[2 * j] = carry[2 * j] + w[0] * here + w[2] * before;
                even[2 * j + 1] = carry[2 * j + 1] + w[1] * here;
                odd[2 * j] = w[3] * here + w[5] * before;
                odd[2 * j + 1] = w[4] * here;
                carry[2 * j] = w[6] * here + w[8] * before;
                carry[2 * j + 1] = w[7] * here;
            }
            if (i > 0) input.back(2 * i - 1, even + 1, out + (2 * i - 1) * s.w);
            input.back(2 * i, odd + 1, out + 2 * i * s.w);
        }
        if (s.h % 2 == 0) input.back(s.h - 1, carry + 1, out + (s.h - 1) * s.w);
    }

    // (C, 3, 3)
    void weights(float *out) const {
        for (dim_t c = 0; c < s.in.c; ++c)
            for (int k = 0; k < kTaps; ++k) {
                double sum = 0;
                for (dim_t n = 0; n < s.in.n; ++n) sum += dw[((n * s.in.blocks + c / B) * kTaps + k) * B + c % B];
                out[c * kTaps + k] = float(sum);
            }
    }
};

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
    const auto *geometry = static_cast<const int64_t *>(data[11]);
    const Problem p(shapes[0], shapes[1], geometry, false);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    const Tail t(geometry, floats(12));
    const Shape s(p, t, B);
    float *y = floats(13), *z1 = floats(14), *z2 = floats(15), *statistics = floats(16);
    forward(p, layout<B>())->run_blocked(data[0], data[1], nullptr, z1);
    const Normalisation norm1{t.norm,    t.epsilon[0], t.momentum[0], floats(3),  floats(4),
                              floats(5), floats(6),    statistics,    floats(17), floats(18)};
    const Normalisation norm2{t.norm,    t.epsilon[1], t.momentum[1],            floats(7),  floats(8),
                              floats(9), floats(10),   statistics + 2 * s.in.c, floats(19), floats(20)};
    const dim_t size1 = s.in.area * B, size2 = s.out.area * B;
    Moments<B> moments1(s.in), moments2(s.out);
    Affine first(s.in.padded(B)), second(s.in.padded(B));
    const auto taps = by_tap<B>(floats(2), s.in.c, s.in.blocks);
    for_groups<B>(s.in, [&](const Group &group) {
        if (t.norm == kTraining) parallel(group.count(), [&](int i) {
            moments1.add(group.tile(i), z1 + group.tile(i) * size1);
        });
        norm1.settle(s.in, moments1, group.begin, group.end, first);
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            depthwise<B>(s, t, first, taps, job, z1 + job * size1, z2 + job * size2);
            if (t.norm == kTraining) moments2.add(job, z2 + job * size2);
        });
        norm2.settle(s.out, moments2, group.begin, group.end, second);
        parallel(group.count(), [&](int i) { finish<B>(s, second, group.tile(i), z2, y); });
    });
}

template <int B>
void separable_backward(void **data, int64_t **shapes) {
    const auto *geometry = static_cast<const int64_t *>(data[10]);
    const Problem p(shapes[0], shapes[12], geometry, false);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    const Tail t(geometry, floats(11));
    const Shape s(p, t, B);
    const float *dy = floats(1), *z1 = floats(2), *z2 = floats(3), *statistics = floats(4);
    float *dz1 = floats(18);
    const dim_t size1 = s.in.area * B, size2 = s.out.area * B;
    const Affine first = affine_again(s.in, B, t.norm, floats(6), floats(7), statistics);
    const Affine second = affine_again(s.out, B, t.norm, floats(8), floats(9), statistics + 2 * s.in.c);
    NormGradient<B> norm1(s.in, t.norm, first), norm2(s.out, t.norm, second);

    Backward<B> backward{s, t, first, by_tap<B>(floats(5), s.in.c, s.in.blocks),
                         std::vector<float>(s.in.count() * kTaps * B)};
    for_groups<B>(s.in, [&](const Group &group) {
        Buffer gradient(group.count() * size2 * sizeof(float));
        float *dv2 = gradient.floats();
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            from_planes<B>(dy + s.planes(job, B), s.out.channels(job, B), s.out.area, dv2 + i * size2);
            norm2.add(job, dv2 + i * size2, z2 + job * size2);
        });
        norm2.settle(group.begin, group.end, floats(16), floats(17));
        parallel(group.count(), [&](int i) {
            const int job = group.tile(i);
            backward.tile(job, norm2, dv2 + i * size2, z1 + job * size1, z2 + job * size2, dz1 + job * size1);
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

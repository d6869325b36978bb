// A stage of a network in one go: convolution, then batch normalisation, max-pooling and activation, each of
// them optional.  What lies between stays in the blocked layout (N, C / block, H, W, block).
#include "normalise.h"

namespace da {
namespace {
// What follows the convolution; continues the integers of Problem.
struct Tail {
    Norm norm;
    dim_t kernel[2], stride[2];
    Activation activation;
    float epsilon, momentum;
    Tail(const int64_t *g, const float *c)
        : norm(Norm(g[11])), kernel{g[12], g[13]}, stride{g[14], g[15]}, activation(Activation(g[16])),
          epsilon(c[0]), momentum(c[1]) {}
};

// The shapes of one stage: z (N, C, H, W) blocked, y (N, C, OH, OW) plain.
struct Shape {
    dim_t h, w, oh, ow;
    Tiles tiles;
    bool pooled;
    Shape(const Problem &p, const Tail &t, int block)
        : h(p.y[2]), w(p.y[3]), oh((h - t.kernel[0]) / t.stride[0] + 1), ow((w - t.kernel[1]) / t.stride[1] + 1),
          tiles(p.y[0], p.y[1], h * w, block),
          pooled(t.kernel[0] * t.kernel[1] > 1 || t.stride[0] * t.stride[1] > 1) {}
    // Where the planes of a tile begin in y.
    dim_t planes(int job, int block) const {
        return (job / tiles.blocks * tiles.c + job % tiles.blocks * block) * oh * ow;
    }
};

// Largest value of the window at (oh, ow); a NaN in the window wins.
template <int B>
typename Vector<B>::type window(const Shape &s, const Tail &t, const float *tile, dim_t oh, dim_t ow,
                                typename Vector<B>::type scale, typename Vector<B>::type shift) {
    using V = typename Vector<B>::type;
    const V *row = reinterpret_cast<const V *>(tile) + oh * t.stride[0] * s.w + ow * t.stride[1];
    V best = row[0] * scale + shift;
    for (dim_t i = 0; i < t.kernel[0]; ++i, row += s.w)
        for (dim_t j = 0; j < t.kernel[1]; ++j) {
            const V v = row[j] * scale + shift;
            best = v <= best ? best : (best != best ? best : v);
        }
    return best;
}

// z -> y: normalise, pool and activate one tile after the other.
template <int B>
void finish(const Shape &s, const Tail &t, const Affine &affine, const float *z, float *y) {
    using V = typename Vector<B>::type;
    const dim_t area = s.oh * s.ow;
    parallel(s.tiles.count(), [&](int job) {
        const float *tile = z + job * s.tiles.area * B;
        const V scale = at<B>(affine.scale, job % s.tiles.blocks), shift = at<B>(affine.shift, job % s.tiles.blocks);
        Buffer buffer(area * B * sizeof(float));
        V *out = static_cast<V *>(buffer.get());
        if (!s.pooled) {
            const V *in = reinterpret_cast<const V *>(tile);
            for (dim_t i = 0; i < area; ++i) out[i] = activate<B>(in[i] * scale + shift, t.activation);
        } else {
            for (dim_t i = 0; i < s.oh; ++i)
                for (dim_t j = 0; j < s.ow; ++j)
                    out[i * s.ow + j] = activate<B>(window<B>(s, t, tile, i, j, scale, shift), t.activation);
        }
        to_planes<B>(buffer.floats(), s.tiles.channels(job, B), area, y + s.planes(job, B));
    });
}

// Spreads one tile of dy back over z's positions: the first of a window's largest values gets the gradient.
template <int B>
void spread(const Shape &s, const Tail &t, const float *tile, const float *dy, dim_t channels,
            typename Vector<B>::type scale, typename Vector<B>::type shift, float *dv) {
    using V = typename Vector<B>::type;
    using M = typename Vector<B>::mask;
    const dim_t area = s.oh * s.ow;
    const V zero = {};
    const V *z = reinterpret_cast<const V *>(tile);
    V *d = reinterpret_cast<V *>(dv);
    if (!s.pooled) {
        from_planes<B>(dy, channels, area, dv);
        if (t.activation != kLinear)
            for (dim_t i = 0; i < area; ++i) d[i] = activate_back<B>(z[i] * scale + shift, d[i], t.activation);
        return;
    }
    Buffer buffer(area * B * sizeof(float));
    from_planes<B>(dy, channels, area, buffer.floats());
    memset(dv, 0, s.tiles.area * B * sizeof(float));
    for (dim_t o = 0; o < area; ++o) {
        const V best = window<B>(s, t, tile, o / s.ow, o % s.ow, scale, shift);
        const V grad = activate_back<B>(best, static_cast<const V *>(buffer.get())[o], t.activation);
        dim_t at = o / s.ow * t.stride[0] * s.w + o % s.ow * t.stride[1];
        M open = zero == zero;
        for (dim_t i = 0; i < t.kernel[0]; ++i, at += s.w)
            for (dim_t j = 0; j < t.kernel[1]; ++j) {
                const M hit = open & ((z[at + j] * scale + shift) == best);
                d[at + j] += hit ? grad : zero;
                open &= ~hit;
            }
    }
}

// dy -> dz, with dgamma and dbeta.
template <int B>
void back(const Shape &s, const Tail &t, const Affine &affine, const float *z, const float *dy, float *dz,
          float *dgamma, float *dbeta) {
    const dim_t size = s.tiles.area * B;
    NormGradient<B> norm(s.tiles, t.norm, affine);
    parallel(s.tiles.count(), [&](int job) {
        const dim_t b = job % s.tiles.blocks;
        spread<B>(s, t, z + job * size, dy + s.planes(job, B), s.tiles.channels(job, B), at<B>(affine.scale, b),
                  at<B>(affine.shift, b), dz + job * size);
        if (t.norm != kNone) norm.add(job, dz + job * size, z + job * size);
    });
    if (t.norm == kNone) return;
    norm.settle(0, s.tiles.c, dgamma, dbeta);
    parallel(s.tiles.count(), [&](int job) {
        norm.apply(job % s.tiles.blocks, s.tiles.area, dz + job * size, z + job * size, dz + job * size);
    });
}

template <int B>
void stage_forward(void **data, int64_t **shapes) {
    const auto *geometry = static_cast<const int64_t *>(data[7]);
    const Problem p(shapes[0], shapes[1], geometry, geometry[Problem::kGeometry] != 0);
    const Tail t(geometry, static_cast<const float *>(data[8]));
    const Shape s(p, t, B);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    float *y = floats(9), *z = floats(10);
    forward(p, B == 16 ? kNchw16c : kNchw8c)->run_blocked(data[0], data[1], data[2], z);
    Moments<B> moments(s.tiles);
    if (t.norm == kTraining)
        parallel(s.tiles.count(), [&](int job) { moments.add(job, z + job * s.tiles.area * B); });
    const Normalisation norm{t.norm,    t.epsilon, t.momentum, floats(3),  floats(4),
                             floats(5), floats(6), floats(11), floats(12), floats(13)};
    Affine affine(s.tiles.padded(B));
    norm.settle(s.tiles, moments, 0, s.tiles.c, affine);
    finish<B>(s, t, affine, z, y);
}

template <int B>
void stage_backward(void **data, int64_t **shapes) {
    const auto *geometry = static_cast<const int64_t *>(data[6]);
    const bool bias = geometry[Problem::kGeometry] != 0;
    const Problem p(shapes[0], shapes[8], geometry, bias);
    const Tail t(geometry, static_cast<const float *>(data[7]));
    const Shape s(p, t, B);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    const Affine affine = affine_again(s.tiles, B, t.norm, floats(4), floats(5), floats(3));
    back<B>(s, t, affine, floats(2), floats(1), floats(12), floats(10), floats(11));
    backward_weights(p, B == 16 ? kNchw16c : kNchw8c)->run(data[0], data[12], data[8], bias ? data[9] : nullptr);
}
}  // namespace
}  // namespace da

extern "C" {
// x, w, bias, gamma, beta, moving mean, moving variance, geometry, coefficients (epsilon, momentum)
// -> y, z blocked, statistics (mean and 1 / deviation), new moving mean, new moving variance.
// Without bias or normalisation their tensors are there but neither read nor written.
int stage_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("stage_forward", [&] {
        da::block() == 16 ? da::stage_forward<16>(data, shapes) : da::stage_forward<8>(data, shapes);
    });
}

// x, dy, z, statistics, gamma, beta, geometry, coefficients -> dw, dbias, dgamma, dbeta, dz blocked
int stage_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("stage_backward", [&] {
        da::block() == 16 ? da::stage_backward<16>(data, shapes) : da::stage_backward<8>(data, shapes);
    });
}

// x (for its shape), w, dz blocked, geometry -> dx
int stage_backward_data(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("stage_backward_data", [&] {
        const auto *geometry = static_cast<const int64_t *>(data[3]);
        const da::Problem p(shapes[0], shapes[1], geometry, geometry[da::Problem::kGeometry] != 0);
        da::backward_data(p, da::block() == 16 ? da::kNchw16c : da::kNchw8c)->run(data[2], data[1], data[4]);
    });
}
}

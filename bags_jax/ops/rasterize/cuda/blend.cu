// Front-to-back blending of the pairs of each tile, and its gradient, for CHANNELS features (compiled once for each count).
//
// A block has one tile of one camera, and in it each warp a patch, in which a lane has some pixels of one column: what depends
// on x alone is computed once for all of them. Gaussians come in batches through shared memory. The thread that fetches one
// finds out which patches its ellipse touches; a warp then walks down the set bits of its own mask, and pays nothing for what
// touches only other patches. Patches are 8 x 8 px forward, and 8 x 16 where a Gaussian costs much before its first pixel: with
// many features, and backward, where the warp sums.
//
// The gradient walks front to back once more, with the light still to come as a running remainder (blend_xla.py):
//   dL/dalpha_i = T_i (c_i . g) - (sum over j > i of w_j c_j . g) / (1 - alpha_i),    w_i = T_i alpha_i,
//   dL/dsigma_i = -alpha_i dL/dalpha_i = w_i ((sum over j > i of w_j c_j . g) / T_(i+1) - c_i . g).
// Nothing was kept for each pixel but the image itself.
#include "device.cuh"

constexpr int FORWARD_PIXELS = CHANNELS <= 4 ? 2 : 4;  // of a lane, one below the other
constexpr int BACKWARD_PIXELS = 4;
constexpr int PATCH_WIDTH = 8;                         // px
constexpr int LANE_ROWS = WARP / PATCH_WIDTH;          // a lane's pixels are this far apart
constexpr int GEOMETRY = 6;                            // x, y, three terms of the exponent, opacity
constexpr int QUADS = (GEOMETRY + CHANNELS + 3) / 4;   // float4s of a Gaussian
constexpr int SUMS = GEOMETRY + CHANNELS;              // what the gradient of a Gaussian is made of

// How a tile is shared out among the threads of a block.
template <int PIXELS>
struct Patches {
  static constexpr int HEIGHT = LANE_ROWS * PIXELS;  // px
  static constexpr int COUNT = TILE * TILE / (PATCH_WIDTH * HEIGHT);
  static constexpr int THREADS = COUNT * WARP;
  static constexpr int WORDS = THREADS / WARP;  // masks of a patch: a batch has one Gaussian for each thread

  // First pixel of a patch, px from that of the tile.
  static __device__ __forceinline__ int x(int patch) { return patch % (TILE / PATCH_WIDTH) * PATCH_WIDTH; }
  static __device__ __forceinline__ int y(int patch) { return patch / (TILE / PATCH_WIDTH) * HEIGHT; }
};

struct View {
  int gaussians, room;  // of one camera
  int columns, tiles;
  int width, height;  // px
  int rows;           // rows of gradients of one camera
};

__device__ __forceinline__ View read_view(const int* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

// As it lies in memory: alpha = opacity * 2^(dx (xx dx + xy dy) + yy dy^2), d = mean - pixel.
union Splat {
  struct {
    float x, y, xx, xy, yy, opacity;
    float features[4 * QUADS - GEOMETRY];
  };
  float4 quads[QUADS];
};

template <int PIXELS>
struct Batch {
  using Split = Patches<PIXELS>;
  Splat splats[Split::THREADS];
  unsigned touched[Split::COUNT][Split::WORDS];  // bit k of word w: the patch sees Gaussian 32 w + k
};

// Where a lane's pixels are.
template <int PIXELS>
struct Place {
  int tile_x, tile_y;  // first pixel of the tile, px
  int x, y;            // of the lane
  int patch;

  __device__ __forceinline__ explicit Place(const View& view) {
    const int lane = threadIdx.x % WARP, tile = blockIdx.x;
    patch = threadIdx.x / WARP;
    tile_x = tile % view.columns * TILE;
    tile_y = tile / view.columns * TILE;
    x = tile_x + Patches<PIXELS>::x(patch) + lane % PATCH_WIDTH;
    y = tile_y + Patches<PIXELS>::y(patch) + lane / PATCH_WIDTH;
  }

  __device__ __forceinline__ bool inside(const View& view, int p) const {
    return x < view.width && y + p * LANE_ROWS < view.height;
  }

  __device__ __forceinline__ size_t pixel(const View& view, int p) const {
    return (size_t(blockIdx.y) * view.height + y + p * LANE_ROWS) * view.width + x;
  }
};

// How far a Gaussian reaches. Approximations do: the exponent is flat where it is largest, and `touches` has some slack.
struct Reach {
  float toward_y;  // along a column of pixels the exponent is largest this far beside the mean, px for each px in x
  float toward_x;  // the same along a row
  float least;     // exponent at MIN_ALPHA

  __device__ __forceinline__ explicit Reach(const Splat& s)
      : toward_y(__fdividef(-0.5f * s.xy, s.yy)), toward_x(__fdividef(-0.5f * s.xy, s.xx)),
        least(-__log2f(s.opacity * (1.0f / MIN_ALPHA))) {}
};

// Whether a Gaussian has alpha >= MIN_ALPHA somewhere between the pixel centres of a patch that begins at (left, top). The
// exponent is concave: its maximum over the rectangle is at the mean, or on one of the two sides that face it.
__device__ __forceinline__ bool touches(const Splat& s, const Reach& reach, float left, float top, int height) {
  const float right = left + (PATCH_WIDTH - 1), bottom = top + (height - 1);
  const float dx = s.x - clamp(s.x, left, right), dy = s.y - clamp(s.y, top, bottom);
  const float best_dy = clamp(reach.toward_y * dx, s.y - bottom, s.y - top);
  const float best_dx = clamp(reach.toward_x * dy, s.x - right, s.x - left);
  const float beside = fmaf(dx, fmaf(s.xx, dx, s.xy * best_dy), s.yy * best_dy * best_dy);
  const float above = fmaf(dy, fmaf(s.yy, dy, s.xy * best_dx), s.xx * best_dx * best_dx);
  // Rounding must not lose a pixel: needles cancel terms far larger than their sum.
  const float size = fmaf(s.xx, fmaf(dx, dx, best_dx * best_dx), s.yy * fmaf(dy, dy, best_dy * best_dy));
  return fmaxf(beside, above) + fmaf(-1e-6f, size, 1e-3f) >= reach.least;
}

// Fetches the Gaussian `id` for this thread, or none, and tells each patch whether it is touched.
template <int PIXELS>
__device__ __forceinline__ void fetch(
    Batch<PIXELS>& batch, const View& view, const float4* splats, int id, const Place<PIXELS>& place) {
  using Split = Patches<PIXELS>;
  const int me = threadIdx.x, word = me / WARP;
  Splat splat{};
  if (id >= 0) {
    const float4* row = splats + (size_t(blockIdx.y) * view.gaussians + id) * QUADS;
#pragma unroll
    for (int q = 0; q < QUADS; ++q) batch.splats[me].quads[q] = splat.quads[q] = row[q];
  }
  const Reach reach(splat);
#pragma unroll
  for (int patch = 0; patch < Split::COUNT; ++patch) {
    const float left = place.tile_x + Split::x(patch) + 0.5f, top = place.tile_y + Split::y(patch) + 0.5f;
    const unsigned touched = __ballot_sync(ALL_LANES, id >= 0 && touches(splat, reach, left, top, Split::HEIGHT));
    if (me % WARP == 0) batch.touched[patch][word] = touched;
  }
}

// What one Gaussian does at the pixels of one lane: the column's share of the exponent, then each pixel's.
struct Column {
  float dy, linear, constant, yy, opacity;

  __device__ __forceinline__ Column(const Splat& s, float dx, float first_dy) {
    dy = first_dy;
    linear = s.xy * dx;
    constant = s.xx * dx * dx;
    yy = s.yy;
    opacity = s.opacity;
  }

  __device__ __forceinline__ float offset(int p) const { return dy - p * LANE_ROWS; }

  // Falloff times opacity, before the clamp; 0 where the Gaussian is not drawn.
  __device__ __forceinline__ float falloff(int p) const {
    const float power = fmaf(offset(p), fmaf(yy, offset(p), linear), constant);
    const float raw = opacity * exp2_approx(power);
    return power <= 0.0f && raw >= MIN_ALPHA ? raw : 0.0f;
  }
};

// Takes a Gaussian's part of the light of one pixel, its weight; 0 if the pixel has stopped. It stops before the Gaussian that
// would take its light to MIN_TRANSMITTANCE, and for good: the sign says so, the magnitude stays.
__device__ __forceinline__ float absorb(float alpha, float& light) {
  const float behind = fmaf(-alpha, light, light);
  const bool goes_on = behind > MIN_TRANSMITTANCE;
  const float weight = goes_on ? alpha * light : 0.0f;
  light = goes_on ? behind : -fabsf(light);
  return weight;
}

template <int PIXELS>
__device__ __forceinline__ bool any_positive(const float (&values)[PIXELS]) {
  float most = values[0];
#pragma unroll
  for (int p = 1; p < PIXELS; ++p) most = fmaxf(most, values[p]);
  return most > 0.0f;
}

// Grid of both kernels: x = tile, y = camera.
KERNEL __launch_bounds__(Patches<FORWARD_PIXELS>::THREADS) blend_forward(
    const int* sizes, const int* starts, const int* ids, const float4* splats, float* colors, float* alphas) {
  constexpr int PIXELS = FORWARD_PIXELS;
  using Split = Patches<PIXELS>;
  __shared__ Batch<PIXELS> batch;
  const View view = read_view(sizes);
  const Place<PIXELS> place(view);
  const int* bounds = starts + size_t(blockIdx.y) * (view.tiles + 1) + blockIdx.x;
  const int end = bounds[1];
  ids += size_t(blockIdx.y) * view.room;

  float light[PIXELS], sums[PIXELS][CHANNELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) {
    light[p] = place.inside(view, p) ? 1.0f : -1.0f;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) sums[p][c] = 0.0f;
  }
  for (int first = bounds[0]; first < end; first += Split::THREADS) {
    if (!__syncthreads_or(any_positive(light))) break;  // and no warp still reads the batch before this one
    const int next = first + threadIdx.x;
    fetch(batch, view, splats, next < end ? ids[next] : -1, place);
    __syncthreads();
    for (int word = 0; word < Split::WORDS; ++word) {
      if (!__any_sync(ALL_LANES, any_positive(light))) break;
      for (unsigned todo = batch.touched[place.patch][word]; todo; todo &= todo - 1) {
        const Splat splat = batch.splats[word * WARP + __ffs(todo) - 1];
        const Column column(splat, splat.x - (place.x + 0.5f), splat.y - (place.y + 0.5f));
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
          const float weight = absorb(fminf(column.falloff(p), MAX_ALPHA), light[p]);
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) sums[p][c] = fmaf(weight, splat.features[c], sums[p][c]);
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) {
    if (!place.inside(view, p)) continue;
    const size_t pixel = place.pixel(view, p);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) colors[pixel * CHANNELS + c] = sums[p][c];
    alphas[pixel] = 1.0f - fabsf(light[p]);
  }
}

// Sums COUNT values over a warp in one butterfly. At each step two lanes share the work: they exchange halves of their
// values, and each goes on with the sums of one half. It takes COUNT + 2 shuffles or so instead of 5 COUNT.
template <int COUNT, int MASK>
__device__ __forceinline__ void fold(float* values, int lane) {
  constexpr int HALF = (COUNT + 1) / 2;
  const bool upper = lane & MASK;
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    float keep = values[i], give = keep;
    if (i + HALF < COUNT) {  // else both lanes go on with the same sum
      keep = upper ? values[i + HALF] : values[i];
      give = upper ? values[i] : values[i + HALF];
    }
    values[i] = keep + __shfl_xor_sync(ALL_LANES, give, MASK);
  }
  if constexpr (MASK > 1) fold<HALF, MASK / 2>(values, lane);
}

// Which of the COUNT sums a lane holds after the fold; -1 if another lane holds it too.
template <int COUNT, int MASK>
__device__ __forceinline__ int folded(int lane) {
  constexpr int HALF = (COUNT + 1) / 2;
  int index = 0;
  if constexpr (MASK > 1) index = folded<HALF, MASK / 2>(lane);
  if (index < 0 || !(lane & MASK)) return index;
  return index + HALF < COUNT ? index + HALF : -1;
}

// State of one pixel on its way through the Gaussians.
struct Ray {
  float light;              // that is left; negative: stopped
  float remainder;          // sum of weight * (feature . cotangent) of what is still to come
  float of_alpha;           // cotangents
  float of_color[CHANNELS];
};

template <int PIXELS>
__device__ __forceinline__ Ray start_ray(
    const View& view, const Place<PIXELS>& place, int p, const float* colors, const float* alphas, const float* of_colors,
    const float* of_alphas) {
  Ray ray{-1.0f, 0.0f, 0.0f, {}};
  if (!place.inside(view, p)) return ray;
  const size_t pixel = place.pixel(view, p);
  ray.light = 1.0f;
  ray.of_alpha = of_alphas[pixel];
  ray.remainder = ray.of_alpha * alphas[pixel];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    ray.of_color[c] = of_colors[pixel * CHANNELS + c];
    ray.remainder = fmaf(ray.of_color[c], colors[pixel * CHANNELS + c], ray.remainder);
  }
  return ray;
}

// One Gaussian at one pixel: dL/dsigma, and the weight by which its features are drawn. Opacity is blended as one more
// channel whose feature is 1.
__device__ __forceinline__ float trace(Ray& ray, const Splat& splat, float raw, float& weight) {
  weight = absorb(fminf(raw, MAX_ALPHA), ray.light);
  float toward = ray.of_alpha;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) toward = fmaf(splat.features[c], ray.of_color[c], toward);
  ray.remainder = fmaf(-weight, toward, ray.remainder);
  const float slope = weight * fmaf(ray.remainder, reciprocal_approx(ray.light), -toward);
  return raw < MAX_ALPHA ? slope : 0.0f;  // none where clamped; where stopped the weight is 0
}

// What all pixels of a lane add to the gradient of one Gaussian: moments of dL/dsigma about its mean, and its features.
template <int PIXELS>
__device__ __forceinline__ void trace_all(
    Ray (&rays)[PIXELS], const Splat& splat, const Column& column, const float (&raw)[PIXELS], float dx, float* values) {
  float weight[PIXELS];
  float s = trace(rays[0], splat, raw[0], weight[0]), sy = s * column.offset(0), syy = sy * column.offset(0);
#pragma unroll
  for (int p = 1; p < PIXELS; ++p) {
    const float slope = trace(rays[p], splat, raw[p], weight[p]), slope_y = slope * column.offset(p);
    s += slope;
    sy += slope_y;
    syy = fmaf(slope_y, column.offset(p), syy);
  }
  const float sx = s * dx;
  const float moments[GEOMETRY] = {s, sx, sy, sx * dx, sy * dx, syy};
#pragma unroll
  for (int k = 0; k < GEOMETRY; ++k) values[k] = moments[k];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    values[GEOMETRY + c] = weight[0] * rays[0].of_color[c];
#pragma unroll
    for (int p = 1; p < PIXELS; ++p) values[GEOMETRY + c] = fmaf(weight[p], rays[p].of_color[c], values[GEOMETRY + c]);
  }
}

template <int PIXELS>
__device__ __forceinline__ bool any_light(const Ray (&rays)[PIXELS]) {
  float light[PIXELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) light[p] = rays[p].light;
  return any_positive(light);
}

template <int PIXELS>
struct Gradients {
  using Split = Patches<PIXELS>;
  float sums[Split::THREADS][Split::COUNT][SUMS];  // of each Gaussian of the batch and patch, where `touched` has a bit
  int rows[Split::THREADS];                        // where the sum over the patches goes
};

// Adds the patches up in their order and sends the sums off. Where each pair has a row of its own this is the only addition
// to it, and nothing depends on the order of blocks.
template <int PIXELS>
__device__ __forceinline__ void scatter(
    const Batch<PIXELS>& batch, const Gradients<PIXELS>& gradients, int count, float* to) {
  using Split = Patches<PIXELS>;
  for (int i = threadIdx.x; i < count * SUMS; i += Split::THREADS) {
    const int k = i / SUMS, value = i % SUMS;
    float sum = 0.0f;
    bool any = false;
#pragma unroll
    for (int patch = 0; patch < Split::COUNT; ++patch) {
      if (!(batch.touched[patch][k / WARP] >> k % WARP & 1)) continue;
      sum += gradients.sums[k][patch][value];
      any = true;
    }
    if (any) atomicAdd(to + size_t(gradients.rows[k]) * SUMS + value, sum);
  }
}

// `rows`: the row of gradients of each pair; its Gaussian, or a slot of its own. `zeros` lends its memory to `gradient`.
KERNEL __launch_bounds__(Patches<BACKWARD_PIXELS>::THREADS, 8) blend_backward(
    const int* sizes, const int* starts, const int* ids, const int* rows, const float4* splats, const float* colors,
    const float* alphas, const float* of_colors, const float* of_alphas, const float* zeros, float* gradient) {
  constexpr int PIXELS = BACKWARD_PIXELS;
  using Split = Patches<PIXELS>;
  __shared__ Batch<PIXELS> batch;
  __shared__ Gradients<PIXELS> gradients;
  const View view = read_view(sizes);
  const Place<PIXELS> place(view);
  const int lane = threadIdx.x % WARP, slot = folded<SUMS, WARP / 2>(lane);
  const int* bounds = starts + size_t(blockIdx.y) * (view.tiles + 1) + blockIdx.x;
  const int end = bounds[1];
  ids += size_t(blockIdx.y) * view.room;
  rows += size_t(blockIdx.y) * view.room;
  gradient += size_t(blockIdx.y) * view.rows * SUMS;
  float* own = &gradients.sums[0][place.patch][max(slot, 0)];

  Ray rays[PIXELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) rays[p] = start_ray(view, place, p, colors, alphas, of_colors, of_alphas);
  for (int first = bounds[0]; first < end; first += Split::THREADS) {
    if (!__syncthreads_or(any_light(rays))) break;  // and no warp still reads the batch before this one
    const int next = first + threadIdx.x;
    fetch(batch, view, splats, next < end ? ids[next] : -1, place);
    if (next < end) gradients.rows[threadIdx.x] = rows[next];
    __syncthreads();
    for (int word = 0; word < Split::WORDS; ++word) {
      const bool lit = __any_sync(ALL_LANES, any_light(rays));
      unsigned added = 0;
      for (unsigned rest, todo = lit ? batch.touched[place.patch][word] : 0; todo; todo = rest) {
        rest = todo & (todo - 1);
        const int k = word * WARP + __ffs(todo) - 1;
        const Splat splat = batch.splats[k];
        const float dx = splat.x - (place.x + 0.5f);
        const Column column(splat, dx, splat.y - (place.y + 0.5f));
        float raw[PIXELS];
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) raw[p] = column.falloff(p);
        if (!__any_sync(ALL_LANES, any_positive(raw))) continue;  // it slips in between the pixel centres
        float values[SUMS];
        trace_all(rays, splat, column, raw, dx, values);
        fold<SUMS, WARP / 2>(values, lane);
        if (slot >= 0) own[k * Split::COUNT * SUMS] = values[0];
        added |= todo ^ rest;
      }
      __syncwarp();
      if (lane == 0) batch.touched[place.patch][word] = added;
    }
    __syncthreads();
    scatter(batch, gradients, min(Split::THREADS, end - first), gradient);
  }
}

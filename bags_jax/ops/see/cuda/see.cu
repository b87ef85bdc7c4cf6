// What one camera sees of each Gaussian, and the gradient of that in Gaussians and camera: the maths of ../xla.py, a
// thread for each Gaussian. XLA makes of it some thirty passes over memory; each kernel here reads a Gaussian once.
//
//   see           activates, filters, projects and colours
//   see_gradient  does it again, and goes back through it
//
// A culled Gaussian has radius 0, neither colour nor depth, and gradient 0. The coefficients of the harmonics, up to 45
// a Gaussian, go through shared memory: a block reads and writes rows of them in one piece. There are no atomics:
// results are equal bit for bit in every run. cuda_build.py defines the limits and constants of geometry.py, numerics.py
// and spherical_harmonics.py that it needs.
#include "device.cuh"

constexpr int BLOCK = 128;           // threads and Gaussians of a block; binding.py has the same number
constexpr int MAX_HARMONICS = 15;    // without the first
constexpr int COLORS_OF = 3;
constexpr int NUM_CAMERA = 20;       // numbers of a camera

struct Vector {
  float x, y, z;
};

__device__ __forceinline__ Vector operator+(Vector a, Vector b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
__device__ __forceinline__ Vector operator-(Vector a, Vector b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
__device__ __forceinline__ Vector operator*(float s, Vector a) { return {s * a.x, s * a.y, s * a.z}; }
__device__ __forceinline__ float dot(Vector a, Vector b) { return fmaf(a.x, b.x, fmaf(a.y, b.y, a.z * b.z)); }
__device__ __forceinline__ Vector cross(Vector a, Vector b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
__device__ __forceinline__ bool all_below(float limit, Vector a) {
  return fabsf(a.x) < limit && fabsf(a.y) < limit && fabsf(a.z) < limit;
}
__device__ __forceinline__ Vector load(const float* array, size_t i) {
  return {array[3 * i], array[3 * i + 1], array[3 * i + 2]};
}
__device__ __forceinline__ void store(float* array, size_t i, Vector a) {
  array[3 * i] = a.x;
  array[3 * i + 1] = a.y;
  array[3 * i + 2] = a.z;
}

// The camera, and the settings of the view.
struct Camera {
  Vector row[3];
  Vector translation;
  float fx, skew, cx, fy, cy;
  Vector center;
  float width, height, near_plane, eps_2d, degree;
  bool has_ray_depth;  // depth is the distance from the camera

  __device__ __forceinline__ Camera(const float* numbers, const float* view) {
    for (int k = 0; k < 3; ++k) row[k] = {numbers[4 * k], numbers[4 * k + 1], numbers[4 * k + 2]};
    translation = {numbers[3], numbers[7], numbers[11]};
    fx = numbers[12], skew = numbers[13], cx = numbers[14], fy = numbers[15], cy = numbers[16];
    center = {numbers[17], numbers[18], numbers[19]};
    width = view[0], height = view[1], near_plane = view[2], eps_2d = view[3], degree = view[4];
    has_ray_depth = view[5] != 0.0f;
  }
};

struct Arrays {
  const float *means, *quats, *log_scales, *logit_opacities, *sh_dc, *filter_3d;
};

// A Gaussian on the screen, with what its gradient needs.
struct Projection {
  bool is_seen;
  Vector mean;                           // world frame
  float w, x, y, z, norm;                // unit quaternion, and its norm before; 0: the identity
  Vector scale, filtered;                // before and after the 3D filter
  float sigmoid, faded;                  // opacity before and after the 3D filter
  float depth, slope_x, slope_y;         // in the camera frame
  float clipped_x, clipped_y;            // the slopes that J is taken at
  Vector column[3];                      // of the rotation of the Gaussian
  Vector right, down, ahead;             // component of its axes in the camera frame, by axis
  Vector row_x, row_y;                   // rows of J W R S, px
  float xx, xy, yy, det_before, det, compensation;
  float x_px, y_px, radius_x, radius_y;

  __device__ __forceinline__ float opacity() const { return faded * compensation; }
};

__device__ __forceinline__ float clip_slope(float slope, float focal, float center, float size) {
  const float margin = FOV_MARGIN * 0.5f * size;
  return clamp(slope, (-center - margin) / focal, (size - center + margin) / focal);
}

__device__ __forceinline__ float component(Vector a, int k) { return k == 0 ? a.x : k == 1 ? a.y : a.z; }

__device__ Projection project(const Arrays& arrays, const Camera& camera, size_t i) {
  Projection p;
  p.is_seen = false;
  const float smoothing = arrays.filter_3d[i];  // negative: a dead row
  if (!(smoothing >= 0.0f)) return p;
  p.mean = load(arrays.means, i);
  const Vector logs = load(arrays.log_scales, i);
  p.scale = {expf(logs.x), expf(logs.y), expf(logs.z)};
  const float square = smoothing * smoothing;
  p.filtered = {sqrtf(fmaf(p.scale.x, p.scale.x, square)), sqrtf(fmaf(p.scale.y, p.scale.y, square)),
                sqrtf(fmaf(p.scale.z, p.scale.z, square))};
  p.sigmoid = 1.0f / (1.0f + expf(-arrays.logit_opacities[i]));
  p.faded = p.sigmoid * (p.scale.x / p.filtered.x) * (p.scale.y / p.filtered.y) * (p.scale.z / p.filtered.z);
  p.w = arrays.quats[4 * i], p.x = arrays.quats[4 * i + 1], p.y = arrays.quats[4 * i + 2], p.z = arrays.quats[4 * i + 3];
  const bool is_finite = all_below(LARGEST, p.mean) && all_below(LARGEST, p.filtered) && fabsf(p.faded) < LARGEST &&
                         all_below(LARGEST, {p.w, p.x, p.y}) && fabsf(p.z) < LARGEST;
  if (!is_finite) return p;
  p.depth = dot(camera.row[2], p.mean) + camera.translation.z;
  if (!(p.depth > camera.near_plane && p.depth < FAR_PLANE)) return p;
  p.slope_x = (dot(camera.row[0], p.mean) + camera.translation.x) / p.depth;
  p.slope_y = (dot(camera.row[1], p.mean) + camera.translation.y) / p.depth;
  p.clipped_x = clip_slope(p.slope_x, camera.fx, camera.cx, camera.width);
  p.clipped_y = clip_slope(p.slope_y, camera.fy, camera.cy, camera.height);

  const float norm_square = p.w * p.w + p.x * p.x + p.y * p.y + p.z * p.z;
  p.norm = norm_square > TINY_SQUARE ? sqrtf(norm_square) : 0.0f;
  const float inverse_norm = p.norm > 0.0f ? 1.0f / p.norm : 0.0f;
  p.w *= inverse_norm, p.x *= inverse_norm, p.y *= inverse_norm, p.z *= inverse_norm;
  p.column[0] = {1.0f - 2.0f * (p.y * p.y + p.z * p.z), 2.0f * (p.x * p.y + p.w * p.z), 2.0f * (p.x * p.z - p.w * p.y)};
  p.column[1] = {2.0f * (p.x * p.y - p.w * p.z), 1.0f - 2.0f * (p.x * p.x + p.z * p.z), 2.0f * (p.y * p.z + p.w * p.x)};
  p.column[2] = {2.0f * (p.x * p.z + p.w * p.y), 2.0f * (p.y * p.z - p.w * p.x), 1.0f - 2.0f * (p.x * p.x + p.y * p.y)};
  const Vector axis[3] = {p.filtered.x * p.column[0], p.filtered.y * p.column[1], p.filtered.z * p.column[2]};
  p.right = {dot(camera.row[0], axis[0]), dot(camera.row[0], axis[1]), dot(camera.row[0], axis[2])};
  p.down = {dot(camera.row[1], axis[0]), dot(camera.row[1], axis[1]), dot(camera.row[1], axis[2])};
  p.ahead = {dot(camera.row[2], axis[0]), dot(camera.row[2], axis[1]), dot(camera.row[2], axis[2])};
  const Vector to_x = p.right - p.clipped_x * p.ahead, to_y = p.down - p.clipped_y * p.ahead;
  p.row_x = (1.0f / p.depth) * (camera.fx * to_x + camera.skew * to_y);
  p.row_y = (camera.fy / p.depth) * to_y;
  if (!(all_below(LARGEST_PX, p.row_x) && all_below(LARGEST_PX, p.row_y))) return p;

  p.xx = dot(p.row_x, p.row_x), p.xy = dot(p.row_x, p.row_y), p.yy = dot(p.row_y, p.row_y);
  const Vector normal = cross(p.row_x, p.row_y);
  p.det_before = dot(normal, normal);
  p.det = p.det_before + camera.eps_2d * (p.xx + p.yy) + camera.eps_2d * camera.eps_2d;
  const float ratio = p.det != 0.0f ? p.det_before / p.det : 0.0f;
  p.compensation = ratio > TINY_SQUARE ? sqrtf(ratio) : 0.0f;
  p.xx += camera.eps_2d;
  p.yy += camera.eps_2d;
  p.x_px = fmaf(camera.fx, p.slope_x, fmaf(camera.skew, p.slope_y, camera.cx));
  p.y_px = fmaf(camera.fy, p.slope_y, camera.cy);

  const float log_ratio = logf(fmaxf(p.opacity() / MIN_ALPHA, 1e-6f));
  const float deviations = sqrtf(fmaxf(2.0f * log_ratio, 0.0f));
  p.radius_x = deviations * sqrtf(p.xx);
  p.radius_y = deviations * sqrtf(p.yy);
  p.is_seen = p.det > 0.0f && log_ratio > 0.0f && all_below(LARGEST, {p.x_px, p.y_px, p.opacity()}) &&
              all_below(LARGEST, {p.xx, p.xy, p.yy}) && p.x_px + p.radius_x > 0.0f && p.y_px + p.radius_y > 0.0f &&
              p.x_px - p.radius_x < camera.width && p.y_px - p.radius_y < camera.height;
  return p;
}

// Direction from the camera to a Gaussian.
struct Direction {
  Vector unit;
  float distance;  // scene units; 0 counts as no direction

  __device__ __forceinline__ Direction(Vector mean, Vector center) {
    const Vector offset = mean - center;
    const float square = dot(offset, offset);
    distance = square > TINY_SQUARE ? sqrtf(square) : 0.0f;
    unit = (distance > 0.0f ? 1.0f / distance : 0.0f) * offset;
  }
};

// Calls function(l, harmonic, its derivative in the direction) for the harmonics of degree 1 to 3, of which there are
// `num`; those above the degree in use are 0. The same numbers as in spherical_harmonics.py.
template <typename Function>
__device__ __forceinline__ void each_harmonic(Vector d, int num, float degree, Function function) {
  const float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  const float one = degree >= 1.0f ? 0.4886025119029199f : 0.0f;
  if (num < 3) return;
  function(0, -one * y, Vector{0.0f, -one, 0.0f});
  function(1, one * z, Vector{0.0f, 0.0f, one});
  function(2, -one * x, Vector{-one, 0.0f, 0.0f});
  if (num < 8) return;
  const float used = degree >= 2.0f ? 1.0f : 0.0f;
  const float a = used * 1.0925484305920792f, b = used * 0.31539156525252005f, c = used * 0.5462742152960396f;
  function(3, a * x * y, Vector{a * y, a * x, 0.0f});
  function(4, -a * y * z, Vector{0.0f, -a * z, -a * y});
  function(5, b * (3.0f * zz - 1.0f), Vector{0.0f, 0.0f, 6.0f * b * z});
  function(6, -a * x * z, Vector{-a * z, 0.0f, -a * x});
  function(7, c * (xx - yy), Vector{2.0f * c * x, -2.0f * c * y, 0.0f});
  if (num < 15) return;
  const float high = degree >= 3.0f ? 1.0f : 0.0f;
  const float e = high * 0.5900435899266435f, f = high * 2.890611442640554f, g = high * 0.4570457994644658f;
  const float h = high * 0.3731763325901154f, k = high * 1.445305721320277f;
  function(8, -e * y * (3.0f * xx - yy), Vector{-6.0f * e * x * y, -3.0f * e * (xx - yy), 0.0f});
  function(9, f * x * y * z, Vector{f * y * z, f * x * z, f * x * y});
  function(10, -g * y * (5.0f * zz - 1.0f), Vector{0.0f, -g * (5.0f * zz - 1.0f), -10.0f * g * y * z});
  function(11, h * z * (5.0f * zz - 3.0f), Vector{0.0f, 0.0f, h * (15.0f * zz - 3.0f)});
  function(12, -g * x * (5.0f * zz - 1.0f), Vector{-g * (5.0f * zz - 1.0f), 0.0f, -10.0f * g * x * z});
  function(13, k * z * (xx - yy), Vector{2.0f * k * x * z, -2.0f * k * y * z, k * (xx - yy)});
  function(14, -e * x * (xx - 3.0f * yy), Vector{-3.0f * e * (xx - yy), 6.0f * e * x * y, 0.0f});
}

// All threads of a block copy `count` numbers between memory and shared memory.
__device__ __forceinline__ void copy(const float* from, float* to, int count) {
  for (int i = threadIdx.x; i < count; i += BLOCK) to[i] = from[i];
}

// Colour before it is clipped at 0; `rest` are the coefficients of the Gaussian.
__device__ __forceinline__ Vector evaluate(Vector dc, const float* rest, Vector direction, int num, float degree) {
  Vector color = SH_C0 * dc;
  each_harmonic(direction, num, degree, [&](int l, float harmonic, Vector) {
    color.x = fmaf(harmonic, rest[3 * l], color.x);
    color.y = fmaf(harmonic, rest[3 * l + 1], color.y);
    color.z = fmaf(harmonic, rest[3 * l + 2], color.z);
  });
  return color + Vector{0.5f, 0.5f, 0.5f};
}

KERNEL see(const int* sizes, const float* camera_numbers, const float* view, const float* means, const float* quats,
           const float* log_scales, const float* logit_opacities, const float* sh_dc, const float* sh_rest,
           const float* filter_3d, float* means_px, float* covs_px, float* conics, float* depths, float* opacities,
           float* radii_px, float* features) {
  __shared__ float rest[BLOCK * MAX_HARMONICS * COLORS_OF];
  const int count = sizes[0], num = sizes[1], stride = COLORS_OF * num;
  const size_t first = size_t(blockIdx.x) * BLOCK, i = first + threadIdx.x;
  const Camera camera(camera_numbers, view);
  const Arrays arrays{means, quats, log_scales, logit_opacities, sh_dc, filter_3d};
  Projection p;
  p.is_seen = false;
  if (i < count) p = project(arrays, camera, i);
  if (__syncthreads_or(p.is_seen)) copy(sh_rest + first * stride, rest, min(BLOCK, int(count - first)) * stride);
  __syncthreads();
  if (i >= count) return;
  Vector color{0.0f, 0.0f, 0.0f};
  float depth = 0.0f;
  if (p.is_seen) {
    const Direction direction(p.mean, camera.center);
    color = evaluate(load(sh_dc, i), rest + threadIdx.x * stride, direction.unit, num, camera.degree);
    color = {fmaxf(color.x, 0.0f), fmaxf(color.y, 0.0f), fmaxf(color.z, 0.0f)};
    depth = camera.has_ray_depth ? direction.distance : p.depth;
  }
  const float inverse = p.is_seen ? 1.0f / p.det : 0.0f;
  means_px[2 * i] = p.is_seen ? p.x_px : 0.0f;
  means_px[2 * i + 1] = p.is_seen ? p.y_px : 0.0f;
  const Vector identity{1.0f, 0.0f, 1.0f};
  store(covs_px, i, p.is_seen ? Vector{p.xx, p.xy, p.yy} : identity);
  store(conics, i, p.is_seen ? Vector{p.yy * inverse, -p.xy * inverse, p.xx * inverse} : identity);
  depths[i] = p.is_seen ? p.depth : 0.0f;
  opacities[i] = p.is_seen ? p.opacity() : 0.0f;
  radii_px[2 * i] = p.is_seen ? p.radius_x : 0.0f;
  radii_px[2 * i + 1] = p.is_seen ? p.radius_y : 0.0f;
  features[4 * i] = color.x;
  features[4 * i + 1] = color.y;
  features[4 * i + 2] = color.z;
  features[4 * i + 3] = depth;
}

// Gradient of the NUM_CAMERA numbers, in the order in which Camera reads them.
struct CameraGradient {
  Vector row[3], translation;
  float fx, skew, cx, fy, cy;
  Vector center;

  // Calls function(number) for each.
  template <typename Function>
  __device__ __forceinline__ void each(Function function) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      function(row[k].x);
      function(row[k].y);
      function(row[k].z);
      function(k == 0 ? translation.x : k == 1 ? translation.y : translation.z);
    }
    function(fx), function(skew), function(cx), function(fy), function(cy);
    function(center.x), function(center.y), function(center.z);
  }
};

struct GaussianGradient {
  Vector mean, log_scale, dc;
  float w, x, y, z, logit_opacity;
};

// Goes back through `project`: from gradients in what it returns to those in Gaussian and camera.
__device__ __forceinline__ void go_back(const Projection& p, const Camera& camera, float d_x_px, float d_y_px,
                                        Vector d_conic, float d_opacity, float d_depth, GaussianGradient& d_gaussian,
                                        CameraGradient& d_camera) {
  // Conic and opacity, as functions of the covariance and of the determinants.
  const float inverse = 1.0f / p.det;
  float d_xx = d_conic.z * inverse, d_xy = -d_conic.y * inverse, d_yy = d_conic.x * inverse;
  float d_det = -(d_conic.x * p.yy - d_conic.y * p.xy + d_conic.z * p.xx) * inverse * inverse;
  const float d_faded = d_opacity * p.compensation;
  float d_det_before = 0.0f;
  if (p.compensation > 0.0f) {
    const float d_ratio = 0.5f * d_opacity * p.faded / p.compensation;
    d_det_before = d_ratio * inverse;
    d_det -= d_ratio * p.compensation * p.compensation * inverse;
  }
  d_det_before += d_det;
  d_xx += camera.eps_2d * d_det;
  d_yy += camera.eps_2d * d_det;
  const Vector d_normal = 2.0f * d_det_before * cross(p.row_x, p.row_y);
  const Vector d_row_x = 2.0f * d_xx * p.row_x + d_xy * p.row_y + cross(p.row_y, d_normal);
  const Vector d_row_y = d_xy * p.row_x + 2.0f * d_yy * p.row_y + cross(d_normal, p.row_x);

  // Rows of J W R S.
  const float per_depth = 1.0f / p.depth;
  const Vector to_x = p.right - p.clipped_x * p.ahead, to_y = p.down - p.clipped_y * p.ahead;
  const Vector d_to_x = camera.fx * per_depth * d_row_x;
  const Vector d_to_y = per_depth * (camera.skew * d_row_x + camera.fy * d_row_y);
  d_camera.fx = per_depth * dot(d_row_x, to_x);
  d_camera.skew = per_depth * dot(d_row_x, to_y);
  d_camera.fy = per_depth * dot(d_row_y, to_y);
  float d_z = d_depth - per_depth * (dot(d_row_x, p.row_x) + dot(d_row_y, p.row_y));
  const float d_clipped_x = -dot(d_to_x, p.ahead), d_clipped_y = -dot(d_to_y, p.ahead);
  const Vector d_ahead = Vector{0.0f, 0.0f, 0.0f} - p.clipped_x * d_to_x - p.clipped_y * d_to_y;

  // Mean on the screen, and the slopes that J is taken at.
  float d_slope_x = camera.fx * d_x_px, d_slope_y = camera.skew * d_x_px + camera.fy * d_y_px;
  d_camera.fx += d_x_px * p.slope_x;
  d_camera.skew += d_x_px * p.slope_y;
  d_camera.cx = d_x_px;
  d_camera.fy += d_y_px * p.slope_y;
  d_camera.cy = d_y_px;
  if (p.clipped_x == p.slope_x) {
    d_slope_x += d_clipped_x;
  } else {
    d_camera.cx -= d_clipped_x / camera.fx;
    d_camera.fx -= d_clipped_x * p.clipped_x / camera.fx;
  }
  if (p.clipped_y == p.slope_y) {
    d_slope_y += d_clipped_y;
  } else {
    d_camera.cy -= d_clipped_y / camera.fy;
    d_camera.fy -= d_clipped_y * p.clipped_y / camera.fy;
  }
  d_z -= per_depth * (d_slope_x * p.slope_x + d_slope_y * p.slope_y);
  d_camera.translation = {per_depth * d_slope_x, per_depth * d_slope_y, d_z};
  d_gaussian.mean = d_camera.translation.x * camera.row[0] + d_camera.translation.y * camera.row[1] + d_z * camera.row[2];
  d_camera.row[0] = d_camera.translation.x * p.mean;
  d_camera.row[1] = d_camera.translation.y * p.mean;
  d_camera.row[2] = d_z * p.mean;

  // Axes of the Gaussian: rotation and scales.
  const float length[3] = {p.filtered.x, p.filtered.y, p.filtered.z};
  float d_length[3];
  Vector d_column[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const float to_right = component(d_to_x, k), to_down = component(d_to_y, k), to_ahead = component(d_ahead, k);
    const Vector axis = length[k] * p.column[k];
    const Vector d_axis = to_right * camera.row[0] + to_down * camera.row[1] + to_ahead * camera.row[2];
    d_camera.row[0] = d_camera.row[0] + to_right * axis;
    d_camera.row[1] = d_camera.row[1] + to_down * axis;
    d_camera.row[2] = d_camera.row[2] + to_ahead * axis;
    d_length[k] = dot(d_axis, p.column[k]);
    d_column[k] = length[k] * d_axis;
  }
  const Vector a = d_column[0], b = d_column[1], c = d_column[2];
  const float d_w = 2.0f * (p.x * (b.z - c.y) + p.y * (c.x - a.z) + p.z * (a.y - b.x));
  const float d_x = 2.0f * (p.y * (b.x + a.y) + p.z * (c.x + a.z) + p.w * (b.z - c.y)) - 4.0f * p.x * (b.y + c.z);
  const float d_y = 2.0f * (p.x * (b.x + a.y) + p.z * (b.z + c.y) + p.w * (c.x - a.z)) - 4.0f * p.y * (a.x + c.z);
  const float d_zq = 2.0f * (p.x * (c.x + a.z) + p.y * (b.z + c.y) + p.w * (a.y - b.x)) - 4.0f * p.z * (a.x + b.y);
  const float along = p.w * d_w + p.x * d_x + p.y * d_y + p.z * d_zq;
  const float per_norm = p.norm > 0.0f ? 1.0f / p.norm : 0.0f;
  d_gaussian.w = per_norm * (d_w - p.w * along);
  d_gaussian.x = per_norm * (d_x - p.x * along);
  d_gaussian.y = per_norm * (d_y - p.y * along);
  d_gaussian.z = per_norm * (d_zq - p.z * along);

  // Activation and 3D filter: the log of the opacity changes by 1 - s^2 / (s^2 + f^2) with the log of each scale.
  const Vector share = {p.scale.x / p.filtered.x, p.scale.y / p.filtered.y, p.scale.z / p.filtered.z};
  const float fading = d_faded * p.faded;
  d_gaussian.log_scale = {p.scale.x * share.x * d_length[0] + fading * (1.0f - share.x * share.x),
                  p.scale.y * share.y * d_length[1] + fading * (1.0f - share.y * share.y),
                  p.scale.z * share.z * d_length[2] + fading * (1.0f - share.z * share.z)};
  d_gaussian.logit_opacity = fading * (1.0f - p.sigmoid);
}

// Gradients in all arrays but sh_rest, of which it gives the harmonics: gradient of coefficient l is harmonics[l] times
// d_dc / SH_C0. camera_sums has the sum over each block of the gradient in the camera.
KERNEL see_gradient(const int* sizes, const float* camera_numbers, const float* view, const float* means,
                    const float* quats, const float* log_scales, const float* logit_opacities, const float* sh_dc,
                    const float* sh_rest, const float* filter_3d, const float* d_means_px, const float* d_conics,
                    const float* d_opacities, const float* d_features, float* d_means, float* d_quats,
                    float* d_log_scales, float* d_logit_opacities, float* d_dc, float* harmonics, float* camera_sums) {
  __shared__ float rest[BLOCK * MAX_HARMONICS * COLORS_OF];
  __shared__ float sums[BLOCK / WARP][NUM_CAMERA];
  const int count = sizes[0], num = sizes[1], stride = COLORS_OF * num;
  const size_t first = size_t(blockIdx.x) * BLOCK, i = first + threadIdx.x;
  const int own = min(BLOCK, int(count - first));  // Gaussians of the block
  const Camera camera(camera_numbers, view);
  const Arrays arrays{means, quats, log_scales, logit_opacities, sh_dc, filter_3d};
  Projection p;
  p.is_seen = false;
  if (i < count) p = project(arrays, camera, i);
  const bool is_any = __syncthreads_or(p.is_seen);
  if (is_any) copy(sh_rest + first * stride, rest, own * stride);
  __syncthreads();
  GaussianGradient d_gaussian{};
  CameraGradient d_camera{};
  float basis[MAX_HARMONICS] = {};
  if (p.is_seen) {
    const float* mine = rest + threadIdx.x * stride;
    const Direction direction(p.mean, camera.center);
    const Vector color = evaluate(load(sh_dc, i), mine, direction.unit, num, camera.degree);
    const float* d_feature = d_features + 4 * i;
    const Vector d_color{color.x > 0.0f ? d_feature[0] : 0.0f, color.y > 0.0f ? d_feature[1] : 0.0f,
                         color.z > 0.0f ? d_feature[2] : 0.0f};
    Vector d_unit{0.0f, 0.0f, 0.0f};
    each_harmonic(direction.unit, num, camera.degree, [&](int l, float harmonic, Vector slope) {
      basis[l] = harmonic;
      d_unit = d_unit + dot({mine[3 * l], mine[3 * l + 1], mine[3 * l + 2]}, d_color) * slope;
    });
    const float per_distance = direction.distance > 0.0f ? 1.0f / direction.distance : 0.0f;
    Vector d_offset = per_distance * (d_unit - dot(d_unit, direction.unit) * direction.unit);
    if (camera.has_ray_depth) d_offset = d_offset + d_feature[3] * direction.unit;
    go_back(p, camera, d_means_px[2 * i], d_means_px[2 * i + 1], load(d_conics, i), d_opacities[i],
            camera.has_ray_depth ? 0.0f : d_feature[3], d_gaussian, d_camera);
    d_gaussian.dc = SH_C0 * d_color;
    d_gaussian.mean = d_gaussian.mean + d_offset;
    d_camera.center = Vector{0.0f, 0.0f, 0.0f} - d_offset;
  }
  if (i < count) {
    store(d_means, i, d_gaussian.mean);
    d_quats[4 * i] = d_gaussian.w;
    d_quats[4 * i + 1] = d_gaussian.x;
    d_quats[4 * i + 2] = d_gaussian.y;
    d_quats[4 * i + 3] = d_gaussian.z;
    store(d_log_scales, i, d_gaussian.log_scale);
    d_logit_opacities[i] = d_gaussian.logit_opacity;
    store(d_dc, i, d_gaussian.dc);
  }
  // The harmonics leave through the same shared memory, [own][num].
  __syncthreads();
#pragma unroll
  for (int l = 0; l < MAX_HARMONICS; ++l)
    if (l < num) rest[threadIdx.x * num + l] = basis[l];
  int k = 0;
  d_camera.each([&](float& number) {
    for (int half = WARP / 2; half > 0; half /= 2) number += __shfl_xor_sync(ALL_LANES, number, half);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP][k] = number;
    ++k;
  });
  __syncthreads();
  copy(rest, harmonics + first * num, own * num);
  if (threadIdx.x < NUM_CAMERA) {
    float sum = 0.0f;
    for (int warp = 0; warp < BLOCK / WARP; ++warp) sum += sums[warp][threadIdx.x];
    camera_sums[blockIdx.x * NUM_CAMERA + threadIdx.x] = sum;
  }
}

// STIR images as NumPy arrays of the same memory, and the one pass over what Python wrote.
#pragma once

#include "python_host.h"

#include "stir/DiscretisedDensity.h"
#include "stir/ExamInfo.h"
#include "stir/VoxelsOnCartesianGrid.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace stir_priors {

using Density = stir::DiscretisedDensity<3, float>;

// Shape, voxel size and origin (z, y, x) as sirf_diffusion.geometry.images.ImageGeometry has them.
struct Grid
{
  int shape[3];
  double voxel_size[3];
  double origin[3];

  std::size_t size() const { return std::size_t(shape[0]) * shape[1] * shape[2]; }
};

// The shape and, where the voxels lie in one piece in C order, where they start. One look at each row: STIR's own
// is_contiguous() and get_regular_range() start threads or allocate for every plane, which costs more than a gradient.
struct Layout
{
  int first[3] = { 0, 0, 0 };
  int shape[3] = { 0, 0, 0 };
  const float* data = nullptr; // null where the voxels do not lie in one piece
};

inline Layout
layout_of(const Density& image)
{
  const auto fail = [] { return std::runtime_error("stir_priors needs an image that is a box of voxels, not an empty one"); };
  Layout layout;
  if (image.get_length() == 0 || image[image.get_min_index()].get_length() == 0)
    throw fail();
  const auto& plane = image[image.get_min_index()];
  const auto& row = plane[plane.get_min_index()];
  if (row.get_length() == 0)
    throw fail();
  layout.first[0] = image.get_min_index();
  layout.first[1] = plane.get_min_index();
  layout.first[2] = row.get_min_index();
  layout.shape[0] = image.get_length();
  layout.shape[1] = plane.get_length();
  layout.shape[2] = row.get_length();
  layout.data = &row[layout.first[2]];
  const float* expected = layout.data;
  bool in_one_piece = true;
  for (int z = image.get_min_index(); z <= image.get_max_index(); ++z)
    {
      if (image[z].get_min_index() != layout.first[1] || image[z].get_length() != layout.shape[1])
        throw fail();
      for (int y = image[z].get_min_index(); y <= image[z].get_max_index(); ++y, expected += layout.shape[2])
        {
          const auto& line = image[z][y];
          if (line.get_min_index() != layout.first[2] || line.get_length() != layout.shape[2])
            throw fail();
          in_one_piece = in_one_piece && &line[layout.first[2]] == expected;
        }
    }
  if (!in_one_piece)
    layout.data = nullptr;
  return layout;
}

inline Grid
grid_of(const Density& image, const Layout& layout)
{
  const auto* voxels = dynamic_cast<const stir::VoxelsOnCartesianGrid<float>*>(&image);
  if (voxels == nullptr)
    throw std::runtime_error("stir_priors needs images of voxels on a Cartesian grid");
  Grid grid;
  for (int d = 0; d < 3; ++d)
    {
      grid.shape[d] = layout.shape[d];
      grid.voxel_size[d] = voxels->get_voxel_size()[d + 1];
      // ImageGeometry counts planes from the first, and in-plane voxels from the middle, as STIR itself does by default.
      const int first = d == 0 ? layout.first[0] : layout.first[d] + layout.shape[d] / 2;
      grid.origin[d] = image.get_origin()[d + 1] + first * grid.voxel_size[d];
    }
  return grid;
}

inline Grid
grid_of(const Density& image)
{
  return grid_of(image, layout_of(image));
}

inline py::array_t<float>
array_over(const float* data, const Grid& grid, bool writable)
{
  const py::ssize_t ny = grid.shape[1], nx = grid.shape[2], size = sizeof(float);
  py::array_t<float> array(std::vector<py::ssize_t>{grid.shape[0], ny, nx},
                           std::vector<py::ssize_t>{ny * nx * size, nx * size, size},
                           data,
                           py::capsule(data, [](void*) {})); // a base object: otherwise pybind11 would copy
  if (!writable)
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

// Warns once per process if a callback kept an array whose memory STIR is about to reuse.
inline void
warn_if_kept(const py::array& array)
{
  static bool warned = false;
  // A traceback under way holds the arrays of its frames.
  if (!warned && std::uncaught_exceptions() == 0 && array.ref_count() > 1)
    {
      warned = true;
      log("warning",
          "a Python callback kept an array that STIR gave it; STIR reuses that memory after the call: keep a copy "
          "(x.copy()) instead");
    }
}

// A read-only array over an image; the image's memory where it is contiguous, else a copy of it.
class ReadView
{
public:
  explicit ReadView(const Density& image)
  {
    const Layout layout = layout_of(image);
    const Grid grid = grid_of(image, layout);
    if (layout.data == nullptr)
      {
        copy_.resize(grid.size());
        std::copy(image.begin_all_const(), image.end_all_const(), copy_.begin());
      }
    array_ = array_over(layout.data != nullptr ? layout.data : copy_.data(), grid, false);
  }
  ReadView(const ReadView&) = delete;
  ~ReadView() { warn_if_kept(array_); }
  const py::array_t<float>& array() const { return array_; }

private:
  std::vector<float> copy_;
  py::array_t<float> array_;
};

// A writable array over an image; commit() must follow, after the last write.
class WriteView
{
public:
  explicit WriteView(Density& image)
      : image_(image)
  {
    const Layout layout = layout_of(image);
    const Grid grid = grid_of(image, layout);
    size_ = grid.size();
    if (layout.data == nullptr)
      {
        copy_.resize(size_);
        std::copy(image.begin_all_const(), image.end_all_const(), copy_.begin());
      }
    data_ = layout.data != nullptr ? const_cast<float*>(layout.data) : copy_.data(); // `image` is not const
    array_ = array_over(data_, grid, true);
  }
  WriteView(const WriteView&) = delete;
  ~WriteView() { warn_if_kept(array_); }
  const py::array_t<float>& array() const { return array_; }
  float* data() { return data_; }
  std::size_t size() const { return size_; }
  // NaN everywhere, so that what nobody writes is found.
  void spoil() { std::memset(data_, 0xff, size_ * sizeof(float)); }
  void commit()
  {
    if (!copy_.empty())
      std::copy(copy_.begin(), copy_.end(), image_.begin_all());
  }

private:
  Density& image_;
  std::size_t size_ = 0;
  std::vector<float> copy_;
  float* data_ = nullptr;
  py::array_t<float> array_;
};

// Multiplies by `factor` and returns how many of the numbers were, or became, NaN or infinite. By their bits: the compiler
// may have been told that such numbers do not exist.
inline std::size_t
scale_and_count_nonfinite(float* data, std::size_t size, float factor)
{
  constexpr std::uint32_t exponent = 0x7f800000U;
  std::size_t bad = 0;
  constexpr std::ptrdiff_t block = 4096; // stays in the nearest cache between the two loops
  const auto end = std::ptrdiff_t(size);
#ifdef _OPENMP
#  pragma omp parallel for schedule(static) reduction(+ : bad) if (size > (std::size_t(1) << 20))
#endif
  for (std::ptrdiff_t start = 0; start < end; start += block)
    {
      const std::ptrdiff_t stop = std::min(end, start + block);
      if (factor != 1.F)
        for (std::ptrdiff_t i = start; i < stop; ++i)
          data[i] *= factor;
      std::uint32_t found = 0;
      for (std::ptrdiff_t i = start; i < stop; ++i)
        {
          std::uint32_t bits;
          std::memcpy(&bits, data + i, sizeof bits);
          found += (bits & exponent) == exponent;
        }
      bad += found;
    }
  return bad;
}

inline py::object
geometry_object(const Grid& grid)
{
  return py::module_::import("sirf_diffusion.interop.stir.callbacks")
      .attr("geometry")(py::make_tuple(grid.shape[0], grid.shape[1], grid.shape[2]),
                        py::make_tuple(grid.voxel_size[0], grid.voxel_size[1], grid.voxel_size[2]),
                        py::make_tuple(grid.origin[0], grid.origin[1], grid.origin[2]));
}

// Tells a Python object how the patient lies, by STIR's enums, and the grid: each if it has a method for it.
inline void
set_up_object(py::handle object, const Density& image)
{
  const auto& position = image.get_exam_info().patient_position;
  if (py::hasattr(object, "set_patient_position"))
    object.attr("set_patient_position")(int(position.get_orientation()), int(position.get_rotation()));
  if (py::hasattr(object, "set_up"))
    object.attr("set_up")(geometry_object(grid_of(image)));
}

} // namespace stir_priors

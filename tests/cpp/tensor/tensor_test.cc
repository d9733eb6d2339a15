#include "tensor/tensor.h"

#include <cmath>
#include <cstring>

#include "check.h"
#include "tensor/qtensor.h"

using namespace rtp_llm;

TEST(make_tensor_is_contiguous_in_row_major_order) {
  float data[24] = {};
  const Tensor x = make_tensor(data, DType::kF32, {2, 3, 4});
  CHECK_EQ(x.numel(), 24);
  CHECK(x.contiguous());
  CHECK_EQ(x.stride[0], 12);
  CHECK_EQ(x.stride[2], 1);
  CHECK_THROWS_WITH(make_tensor(data, DType::kF32, {1, 1, 1, 1, 1}), InvalidArgument, "at most 4 dimensions, got 5");
}

TEST(rows_and_columns_are_views_of_the_same_memory) {
  float data[12];
  for (int i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
  const Tensor x = make_tensor(data, DType::kF32, {3, 4});
  const Tensor part = x.rows(1, 2).columns(2, 2);
  CHECK_EQ(part.as<float>()[0], 6.0f);
  CHECK_EQ(part.as<float>()[part.stride[0] + 1], 11.0f);
  CHECK(!part.contiguous());
  CHECK(x.rows(1, 1).contiguous());
  CHECK_THROWS_WITH(x.rows(2, 2), InvalidArgument, "rows [2, 4) out of range, tensor has 3");
  CHECK_THROWS_WITH(x.columns(-1, 2), InvalidArgument, "columns [-1, 1)");
}

TEST(dtypes_have_hugging_faces_names) {
  CHECK(dtype_from_name("bfloat16") == DType::kBF16);
  CHECK_EQ(size_of(DType::kBF16), 2);
  CHECK_THROWS_WITH(dtype_from_name("float16"), InvalidArgument, "unknown dtype 'float16'");
}

TEST(bf16_rounds_to_nearest_even) {
  const auto rounded = [](uint32_t bits) { return to_bf16(__builtin_bit_cast(float, bits)).bits; };
  CHECK_EQ(rounded(0x3f800000), 0x3f80);
  CHECK_EQ(rounded(0x3f808000), 0x3f80);  // half, even below
  CHECK_EQ(rounded(0x3f818000), 0x3f82);  // half, even above
  CHECK_EQ(rounded(0x3f808001), 0x3f81);
  CHECK_EQ(rounded(0x7f7fffff), 0x7f80);  // beyond the greatest: infinity
  CHECK_EQ(rounded(0xff800000), 0xff80);
  CHECK_EQ(rounded(0x00008001), 0x0001);  // a denormal
  CHECK(std::isnan(to_f32(to_bf16(__builtin_bit_cast(float, 0x7f800001u)))));
}

TEST(a_plain_tensor_stands_for_an_unquantized_one) {
  float data[2] = {};
  const QTensor x = make_tensor(data, DType::kF32, {2});
  CHECK(!x.quantized());
  CHECK_EQ(x.data.numel(), 2);
}

TEST(heads_are_a_view_of_columns_however_the_rows_are_strided) {
  float data[20] = {};
  const Tensor rows = make_tensor(data, DType::kF32, {2, 10}).columns(4, 6);
  const Tensor heads = rows.heads(3, 2);
  CHECK_EQ(heads.ndim, 3);
  CHECK(heads.data == data + 4);
  CHECK(heads.shape == (decltype(heads.shape){2, 3, 2}));
  CHECK(heads.stride == (decltype(heads.stride){10, 2, 1}));
  CHECK_THROWS_WITH(rows.heads(3, 3), InvalidArgument, "heads: 3 of 3, tensor has 6 columns");
}

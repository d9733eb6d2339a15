#include "kv/kv_layout.h"

#include <set>

#include "check.h"
#include "kv/sha256.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

TEST(a_block_is_layer_plane_head_token_dim_without_gaps) {
  const KvLayout layout = KvLayout::transformer(3, 2, 8, DType::kBF16, 16);
  const KvGroup& group = layout.groups[0];
  CHECK_EQ(group.plane_offset(0), 0);
  CHECK_EQ(group.plane_offset(1), 2 * 16 * 8 * 2);
  CHECK_EQ(group.layer_bytes(), 2 * 2 * 16 * 8 * 2);
  CHECK_EQ(group.layer_offset(2), 2 * group.layer_bytes());
  CHECK_EQ(group.block_bytes(), 3 * group.layer_bytes());

  // Every vector of the pool through the views: each address once, together the whole pool.
  const int num_blocks = 4;
  std::vector<uint8_t> pool(num_blocks * group.block_bytes());
  std::set<int64_t> offsets;
  for (int layer = 0; layer < 3; ++layer) {
    const KvView view = view_of_layer(group, pool.data(), num_blocks, layer);
    for (int block = 0; block < num_blocks; ++block)
      for (int plane = 0; plane < 2; ++plane)
        for (int head = 0; head < view.num_heads; ++head)
          for (int token = 0; token < view.block_tokens; ++token)
            offsets.insert(view.base - pool.data() + block * view.block_stride + view.plane_offset[plane] +
                           head * view.head_stride + token * view.token_stride);
  }
  CHECK_EQ(offsets.size() * 8 * 2, pool.size());
  int64_t expected = 0;
  for (int64_t offset : offsets) CHECK_EQ(offset, expected), expected += 16;
}

TEST(canonical_json_has_sorted_keys_and_no_spaces) {
  const KvLayout layout = KvLayout::transformer(2, 4, 64, DType::kBF16, 16);
  const std::string plane = R"({"dtype":"bfloat16","head_dim":64,"name":"K","num_heads":4})";
  const std::string plane_v = R"({"dtype":"bfloat16","head_dim":64,"name":"V","num_heads":4})";
  const std::string json = R"({"groups":[{"block_tokens":16,"layers":[0,1],"lifetime":"whole_sequence","planes":[)" +
                           plane + "," + plane_v + R"(]}],"model_digest":"ab\"c"})";
  CHECK_EQ(layout.canonical_json("ab\"c"), json);
  CHECK_EQ(layout.fingerprint("ab\"c"), sha256_hex(json));
}

TEST(equal_layouts_differ_in_nothing) {
  const std::string json = KvLayout::transformer(2, 4, 64, DType::kF32, 16).canonical_json("m");
  CHECK_EQ(describe_difference(json, json), "");
}

TEST(a_difference_is_named_by_path_with_both_values) {
  const auto json = [](int layers, int heads, int dim, DType dtype, int tokens, const char* digest = "m") {
    return KvLayout::transformer(layers, heads, dim, dtype, tokens).canonical_json(digest);
  };
  const std::string here = json(2, 4, 64, DType::kF32, 16);
  CHECK_EQ(describe_difference(here, json(2, 4, 64, DType::kF32, 64)), "groups[0].block_tokens: 16 here, 64 there");
  CHECK_EQ(describe_difference(here, json(2, 4, 64, DType::kF32, 16, "n")), "model_digest: m here, n there");
  CHECK_EQ(describe_difference(here, json(2, 4, 64, DType::kBF16, 16)),
           "groups[0].planes[0].dtype: float32 here, bfloat16 there; "
           "groups[0].planes[1].dtype: float32 here, bfloat16 there");
  CHECK_EQ(describe_difference(here, json(1, 4, 64, DType::kF32, 16)),
           "groups[0].layers: 2 entries here, 1 entries there; groups[0].layers[1]: 1 here, absent there");
  CHECK_EQ(describe_difference(R"({"a":1})", R"({"b":2})"), "a: 1 here, absent there; b: absent here, 2 there");
}

// Of a peer's hello: the paths of its values must not grow with the square of its bytes.
TEST(a_layout_beyond_the_limits_is_refused_by_name) {
  const std::string good = KvLayout::transformer(1, 1, 2, DType::kF32, 4).canonical_json("m");
  const auto list = [](int count) {
    std::string text = "[0";
    for (int i = 1; i < count; ++i) text += ",0";
    return text + "]";
  };
  const std::string long_key = "{\"" + std::string(30000, 'k') + "\":" + list(4000) + "}";
  CHECK_THROWS_WITH(describe_difference(good, long_key), InvalidArgument, "a key of 30000 bytes");
  std::string deep = list(3000);
  for (int i = 0; i < 3; ++i) deep = "{\"" + std::string(200, 'k') + "\":" + deep + "}";
  CHECK_THROWS_WITH(describe_difference(good, deep), InvalidArgument, "a path of");
  CHECK_THROWS_WITH(describe_difference(good, list(5000)), InvalidArgument, "more than 4096 values");
  CHECK_THROWS_WITH(describe_difference(good, std::string((64 << 10) + 1, ' ')), InvalidArgument, "the limit is");
}

TEST(a_text_of_differences_is_short_however_much_differs) {
  std::string many = "{";
  for (int i = 0; i < 1000; ++i) many += concat(i == 0 ? "" : ",", "\"", i, "\":\"", std::string(50, 'v'), "\"");
  const std::string text = describe_difference("{}", many + "}");
  CHECK(text.find("; and 980 more") != std::string::npos);
  CHECK(text.size() < 3000);
  const std::string value = describe_difference("{}", "{\"a\":\"" + std::string(60000, 'v') + "\"}");
  CHECK(value.size() < 200);
}

TEST(twenty_differences_and_a_value_of_a_hundred_bytes_are_told_whole) {
  const auto object = [](int count) {
    std::string text = "{";
    for (int i = 0; i < count; ++i) text += concat(i == 0 ? "" : ",", "\"k", i, "\":1");
    return text + "}";
  };
  CHECK(describe_difference("{}", object(20)).find("more") == std::string::npos);
  CHECK(describe_difference("{}", object(21)).ends_with(" there; and 1 more"));
  const auto value = [](int bytes) { return "{\"a\":\"" + std::string(bytes, 'v') + "\"}"; };
  CHECK_EQ(describe_difference("{}", value(100)), "a: absent here, " + std::string(100, 'v') + " there");
  CHECK_EQ(describe_difference("{}", value(101)), "a: absent here, " + std::string(100, 'v') + "… there");
}

TEST(a_layout_that_is_not_json_is_refused_with_the_offset) {
  const std::string good = KvLayout::transformer(1, 1, 2, DType::kF32, 4).canonical_json("m");
  for (size_t cut = 0; cut < good.size(); ++cut)
    CHECK_THROWS_WITH(describe_difference(good, good.substr(0, cut)), InvalidArgument, "not JSON");
  CHECK_THROWS_WITH(describe_difference(good, good + "x"), InvalidArgument, "the end at offset");
  CHECK_THROWS_WITH(describe_difference(good, std::string(50000, '[')), InvalidArgument, "nested deeper");
  CHECK_THROWS_WITH(describe_difference(good, std::string(2 << 20, ' ')), InvalidArgument, "the limit is");
  CHECK_THROWS_WITH(describe_difference(good, R"({"a)"
                                              "\\"),
                    InvalidArgument, "not JSON");
}

TEST(impossible_shapes_are_refused_by_name) {
  CHECK_THROWS_WITH(KvLayout::transformer(0, 1, 1, DType::kF32, 1), InvalidArgument, "num_layers");
  CHECK_THROWS_WITH(KvLayout::transformer(1, 0, 1, DType::kF32, 1), InvalidArgument, "num_kv_heads");
  CHECK_THROWS_WITH(KvLayout::transformer(1, 1, -1, DType::kF32, 1), InvalidArgument, "head_dim");
  CHECK_THROWS_WITH(KvLayout::transformer(1, 1, 0, DType::kF32, 1), InvalidArgument, "head_dim");
  CHECK_THROWS_WITH(KvLayout::transformer(1, 1, 1, DType::kF32, 0), InvalidArgument, "block_tokens");
  const KvLayout layout = KvLayout::transformer(2, 1, 1, DType::kF32, 1);
  const KvGroup& group = layout.groups[0];
  CHECK_THROWS_WITH(view_of_layer(group, nullptr, 1, 2), InvalidArgument, "layer index 2");
  CHECK_THROWS_WITH(view_of_layer(group, nullptr, 1, -1), InvalidArgument, "layer index -1");
  CHECK_EQ(group.layer_offset(2), group.block_bytes());  // where the block ends
  CHECK_THROWS_WITH(group.layer_offset(3), InvalidArgument, "layer index 3 out of range, group has 2 layers");
  CHECK_EQ(group.plane_offset(2), group.layer_bytes());
  for (int plane : {-1, 3}) CHECK_THROWS_WITH(group.plane_offset(plane), InvalidArgument, concat("plane ", plane));
}

TEST(a_view_is_of_planes_k_and_v_of_one_shape) {
  const auto refused = [](auto change, const char* why) {
    KvGroup group = KvLayout::transformer(1, 2, 4, DType::kF32, 4).groups[0];
    change(group.planes);
    CHECK_THROWS_WITH(view_of_layer(group, nullptr, 1, 0), InvalidArgument, why);
  };
  refused([](auto& planes) { planes.pop_back(); }, "planes K and V, group has 1");
  refused([](auto& planes) { planes.push_back(planes[0]); }, "planes K and V, group has 3");
  refused([](auto& planes) { planes[1].num_heads = 3; }, "equal shape, got 2x4 and 3x4");
  refused([](auto& planes) { planes[1].head_dim = 8; }, "equal shape, got 2x4 and 2x8");
  refused([](auto& planes) { planes[1].dtype = DType::kBF16; }, "equal shape");
}

}  // namespace
}  // namespace rtp_llm

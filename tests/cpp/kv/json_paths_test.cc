#include "kv/json_paths.h"

#include "check.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

using Paths = std::vector<std::pair<std::string, std::string>>;

std::string list_of(int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += i == 0 ? "0" : ",0";
  return text + "]";
}

std::string nested(int depth) { return std::string(depth, '[') + "1" + std::string(depth, ']'); }

TEST(each_value_has_its_path_and_an_array_its_length) {
  CHECK_EQ(json_paths(R"( { "a" : [ 1 , { "b" : true } , [] ] , "c" : { } , "d" : "x y" } )"),
           (Paths{{"a", "3 entries"}, {"a[0]", "1"}, {"a[1].b", "true"}, {"a[2]", "0 entries"}, {"d", "x y"}}));
  CHECK_EQ(json_paths("null"), (Paths{{"", "null"}}));
}

TEST(numbers_and_strings_stay_as_they_are_written) {
  CHECK_EQ(json_paths("[-1.5e+3]")[1].second, "-1.5e+3");
  CHECK_EQ(json_paths(R"({"a\"b":"c\\"})"), (Paths{{R"(a\"b)", R"(c\\)"}}));
  CHECK_EQ(json_paths(R"("\"")"), (Paths{{"", R"(\")"}}));
}

TEST(what_is_no_json_is_refused_where_it_ends_to_be) {
  const auto refused = [](const char* text, const char* why) {
    CHECK_THROWS_WITH(json_paths(text), InvalidArgument, std::string("not JSON: expected ") + why);
  };
  refused("", "more text at offset 0");
  refused("[1", "more text at offset 2");
  refused("[1 2]", ", at offset 3");
  refused("[,1]", "a value at offset 1");
  refused("{1:2}", "a key at offset 1");
  refused(R"({"a" 1})", ": at offset 5");
  refused(R"({"a":1 "b":2})", ", at offset 7");
  refused(R"({,"a":1})", "a key at offset 1");
  refused("1 1", "the end at offset 2");
  refused("\"abc", "the end of a string at offset 4");
  refused("\"abc\\\"", "the end of a string");
  refused("#", "a value at offset 0");
}

TEST(limits_hold_at_their_borders) {
  CHECK_EQ(json_paths(list_of(4095)).size(), 4096);  // with the list itself
  CHECK_THROWS_WITH(json_paths(list_of(4096)), InvalidArgument, "more than 4096 values");
  const auto key = [](int bytes) { return "{\"" + std::string(bytes, 'k') + "\":1}"; };
  CHECK_EQ(json_paths(key(256)).size(), 1);
  CHECK_THROWS_WITH(json_paths(key(257)), InvalidArgument, "a key of 257 bytes");
  const auto path = [&](int bytes) { return "{\"" + std::string(100, 'k') + "\":" + key(bytes - 101) + "}"; };
  CHECK_EQ(json_paths(path(256))[0].first.size(), 256);
  CHECK_THROWS_WITH(json_paths(path(257)), InvalidArgument, "a path of 257 bytes");
  CHECK_EQ(json_paths(nested(16)).size(), 17);
  CHECK_THROWS_WITH(json_paths(nested(17)), InvalidArgument, "nested deeper than 16 at offset 17");
  CHECK_EQ(json_paths("1" + std::string((64 << 10) - 1, ' ')).size(), 1);
  CHECK_THROWS_WITH(json_paths("1" + std::string(64 << 10, ' ')), InvalidArgument, "a layout of 65537 bytes");
}

TEST(what_json_cant_hold_is_quoted_with_an_escape) {
  CHECK_EQ(json_quoted("a\"b\\c"), R"("a\"b\\c")");
  CHECK_EQ(json_quoted(std::string_view("\x01\x1f\x20\0", 4)), "\"\\u0001\\u001f \\u0000\"");
  CHECK_EQ(json_quoted("\xc3\xa9"), "\"\xc3\xa9\"");
  CHECK_EQ(json_quoted(""), "\"\"");
}

}  // namespace
}  // namespace rtp_llm

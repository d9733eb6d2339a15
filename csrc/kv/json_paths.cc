#include "kv/json_paths.h"

#include <cctype>
#include <utility>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxBytes = 64 << 10;
constexpr size_t kMaxLeaves = 4096;
constexpr size_t kMaxPathBytes = 256;  // a leaf holds its path whole

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {
    check(text.size() <= kMaxBytes, "a layout of ", text.size(), " bytes, the limit is ", kMaxBytes);
  }

  std::vector<std::pair<std::string, std::string>> read() {
    value("", 0);
    skip_space();
    require(at_ == text_.size(), "the end");
    return std::move(leaves_);
  }

 private:
  void value(const std::string& path, int depth) {
    check(depth <= kMaxDepth, "JSON is nested deeper than ", kMaxDepth, " at offset ", at_);
    switch (peek()) {
      case '{': return object(path, depth);
      case '[': return array(path, depth);
      case '"': add(path, string()); return;
      default: add(path, word()); return;
    }
  }

  void add(const std::string& path, std::string value) {
    check(path.size() <= kMaxPathBytes, "a path of ", path.size(), " bytes in a layout, the limit is ", kMaxPathBytes);
    check(leaves_.size() < kMaxLeaves, "a layout of more than ", kMaxLeaves, " values");
    leaves_.emplace_back(path, std::move(value));
  }

  void object(const std::string& path, int depth) {
    take('{');
    for (bool first = true; peek() != '}'; first = false) {
      if (!first) take(',');
      require(peek() == '"', "a key");
      const std::string key = string();
      take(':');
      check(key.size() <= kMaxPathBytes, "a key of ", key.size(), " bytes in a layout, the limit is ", kMaxPathBytes);
      value(path.empty() ? key : path + "." + key, depth + 1);
    }
    take('}');
  }

  void array(const std::string& path, int depth) {
    take('[');
    const size_t place = leaves_.size();
    add(path, "");
    int count = 0;
    for (; peek() != ']'; ++count) {
      if (count != 0) take(',');
      value(concat(path, "[", count, "]"), depth + 1);
    }
    take(']');
    leaves_[place].second = concat(count, " entries");
  }

  // Escapes stay as they are written: both sides write them the same way.
  std::string string() {
    take('"');
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != '"') at_ += text_[at_] == '\\' ? 2 : 1;
    require(at_ < text_.size(), "the end of a string");
    return std::string(text_.substr(begin, at_++ - begin));
  }

  // A number, true, false or null.
  std::string word() {
    const size_t begin = at_;
    const auto belongs = [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '-' || c == '+'; };
    while (at_ < text_.size() && belongs(text_[at_])) ++at_;
    require(at_ > begin, "a value");
    return std::string(text_.substr(begin, at_ - begin));
  }

  char peek() {
    skip_space();
    require(at_ < text_.size(), "more text");
    return text_[at_];
  }

  void take(char expected) {
    require(peek() == expected, std::string(1, expected));
    ++at_;
  }

  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  void require(bool holds, const std::string& expected) const {
    if (!holds) throw InvalidArgument(concat("not JSON: expected ", expected, " at offset ", at_));
  }

  std::string_view text_;
  size_t at_ = 0;
  std::vector<std::pair<std::string, std::string>> leaves_;
};

}  // namespace

std::vector<std::pair<std::string, std::string>> json_paths(std::string_view text) { return Reader(text).read(); }

std::string json_quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (byte < 0x20) {
      static constexpr char kDigits[] = "0123456789abcdef";
      quoted += std::string("\\u00") + kDigits[byte >> 4] + kDigits[byte & 15];
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace rtp_llm

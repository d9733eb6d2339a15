// Reads a JSON text as a flat list of (path, value), for comparing layouts by name.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rtp_llm {

// Leaves in order of the text: {"groups":[{"layers":[0,1]}]} gives ("groups", "1 entries"),
// ("groups[0].layers", "2 entries"), ("groups[0].layers[0]", "0"), ("groups[0].layers[1]", "1").
// Strings come without quotes. Throws InvalidArgument with the offset if the text is not JSON, and
// by name if it is nested deeper than 16, longer than 64 KiB, or has more than 4,096 values or a path
// of more than 256 bytes: a peer wrote it, and each value holds its path.
std::vector<std::pair<std::string, std::string>> json_paths(std::string_view text);

// `text` as a JSON string, quotes included.
std::string json_quoted(std::string_view text);

}  // namespace rtp_llm

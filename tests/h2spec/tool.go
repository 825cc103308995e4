//go:build tools

// Package tools pins h2spec, which `tests/lab/programs.py` builds.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"

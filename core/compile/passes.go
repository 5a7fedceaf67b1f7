package compile

import (
	"strconv"

	"stapbox/core/backend"
)

// passes tells Phase what a worker noted.
func (s *Service) passes(dir string) {
	if s.Phase == nil {
		return
	}
	for pass, took := range backend.Passes(dir) {
		s.phase("pass"+strconv.Itoa(pass+1), took)
	}
}

package wire

import (
	"compress/flate"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// BuildDir is the directory of the response that holds what the build left.
const BuildDir = "stap000000"

// Response is what a server answers.
type Response struct {
	Version    string // "1.0" when the server sent none
	RC         int
	HasRC      bool // a server that refused early may send no status
	Stdout     []byte
	HasStdout  bool
	Stderr     []byte
	HasStderr  bool
	Files      []File // contents of the build directory, names relative to it
	SigningKey []byte // signing_key.x509, or nil
}

// Encode makes the archive of a response. Version, status and both outputs are
// always there.
func (r *Response) Encode() ([]byte, error) {
	files := []File{
		{"version", []byte(r.Version)},
		{"rc", []byte(strconv.Itoa(r.RC))},
		{"stdout", r.Stdout},
		{"stderr", r.Stderr},
	}
	for _, f := range r.Files {
		files = append(files, File{BuildDir + "/" + f.Name, f.Data})
	}
	if r.SigningKey != nil {
		files = append(files, File{"signing_key.x509", r.SigningKey})
	}
	return writeArchive(files, flate.BestSpeed)
}

// ErrEmptyResponse says that a server closed the connection without an answer,
// as upstream's does with requests it refuses.
var ErrEmptyResponse = errors.New("the server sent no answer: the request may be too large for it (its --max-compressed-request, --max-request-size) or malformed")

// DecodeResponse reads the archive of a response.
func DecodeResponse(data []byte) (*Response, error) {
	if len(data) == 0 {
		return nil, ErrEmptyResponse
	}
	files, err := readArchive(data, ResponseLimits)
	var size *SizeError
	if errors.As(err, &size) {
		return nil, fmt.Errorf("response holds %d bytes, 1 to %d are accepted", size.Size, size.Max)
	}
	if err != nil {
		return nil, err
	}
	r := &Response{Version: "1.0"}
	buildDir := ""
	for _, f := range files {
		dir, rest, inDir := strings.Cut(f.Name, "/")
		switch {
		case f.Name == "version":
			if r.Version, err = firstVersion(f.Data); err != nil {
				return nil, err
			}
		case f.Name == "rc":
			rc, err := strconv.Atoi(strings.TrimSpace(string(f.Data)))
			if err != nil || rc < 0 || rc > 255 {
				return nil, fmt.Errorf("status %.40q of the response is not a number from 0 to 255", f.Data)
			}
			r.RC, r.HasRC = rc, true
		case f.Name == "stdout":
			r.Stdout, r.HasStdout = f.Data, true
		case f.Name == "stderr":
			r.Stderr, r.HasStderr = f.Data, true
		case f.Name == "signing_key.x509":
			r.SigningKey = f.Data
		case inDir && len(dir) == len(BuildDir) && strings.HasPrefix(dir, "stap"):
			if buildDir != "" && buildDir != dir {
				return nil, errors.New("Incorrect number of files in server response")
			}
			buildDir = dir
			r.Files = append(r.Files, File{rest, f.Data})
		}
	}
	return r, nil
}

// Modules returns the modules directly in the build directory, with their
// signatures (nil where there is none).
func (r *Response) Modules() (modules, signatures []File) {
	sgn := make(map[string][]byte)
	for _, f := range r.Files {
		if name, ok := strings.CutSuffix(f.Name, ".sgn"); ok {
			sgn[name] = f.Data
		}
	}
	for _, f := range r.Files {
		if strings.HasSuffix(f.Name, ".ko") && path.Dir(f.Name) == "." {
			modules = append(modules, f)
			signatures = append(signatures, File{f.Name + ".sgn", sgn[f.Name]})
		}
	}
	return modules, signatures
}

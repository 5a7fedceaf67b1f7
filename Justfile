# The recipes of stapbox; `just` lists them.

export CGO_ENABLED := "0"

# list the recipes
default:
    @just --list

# build the one static file
build:
    ./e2e/run build

# images for containers: stapbox-client.oci.tar, stapbox-server.oci.tar
image DIR=".":
    ./e2e/run image {{DIR}}

# all tests: unit, fuzz seeds, testscript, guests
test:
    ./e2e/run test

# what is fast of them, and the main walk in one guest
quick:
    ./e2e/run test quick

# scripts and commands of users that were once misread, one line each
cases:
    ./e2e/run cases

# a production host with its compile server, for scripts of one's own
guest *ARGS:
    ./e2e/run guest --server {{ARGS}}

# the main job, end to end, as a transcript
demo:
    ./e2e/run demo

# all tests, every guest test on every kernel
kernels:
    STAPBOX_KERNELS=all ./e2e/run test

# 10,000 load cycles, 2,000 race rounds, a kill at every point
stress:
    STAPBOX_STRESS=1 go test ./e2e -count=1 -v -timeout 10h -run 'TestStress|TestRace|TestKilled'

# with upstream SystemTap and its kernel
interop:
    ./e2e/run interop

# side by side with upstream: medians and ratios
bench:
    ./e2e/run bench

# formatting, vet and known vulnerabilities
lint:
    test -z "$(gofmt -l .)"
    go vet ./...
    go run golang.org/x/vuln/cmd/govulncheck@latest ./...

# run every fuzz target for TIME
fuzz TIME="30s":
    ./e2e/run fuzz {{TIME}}

# size of the executable
size: build
    @ls -l stapbox | awk '{printf "%.1f MB\n", $5 / 1e6}'

# show a manual page
man PAGE:
    @go run . man {{PAGE}}

# install here (root)
install: build
    ./stapbox install

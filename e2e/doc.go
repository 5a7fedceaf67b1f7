// Package e2e tests the built binary: on the host through testscript files, in
// QEMU guests on real kernels, and with a compile server in between. The command
// ./e2e/run is its front door.
package e2e

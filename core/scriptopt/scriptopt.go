// Package scriptopt divides the options of one service script, which are those of
// stap(1), between compiling (stap -p4) and starting (staprun).
//
// The words are normalised as getopt(1) does: clusters split, -DX as -D X,
// abbreviations completed, words that are no options behind "--", which always
// ends the list. Then (services 3.3):
//
//	option                               compile    start
//	-p -m -r -e                 + arg    -          -
//	-h -V -k -F                          -          -
//	-c CMD  -x PID  -S SIZE[,N]          -          kept
//	-s SIZE                              -          -b SIZE
//	-o FILE                              -          kept, and the mode is -D, not -L
//	-l -L                       + arg    -          -            with a warning
//	any other option of stap             kept       -
//	words behind --                      -          module parameters
//
// An optional argument stays glued, --name=value, as it would be lost otherwise.
// The mode is the last word for staprun.
package scriptopt

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"stapbox/core/getopt"
	"stapbox/core/stapopts"
)

// Options are the options of one script.
type Options struct {
	Compile  []string // for stap, ends with "--"
	Start    []string // for staprun, ends with the mode
	Params   []string // module parameters
	Output   string   // of -o
	Warnings []string

	hasOutput bool
}

// Daemon reports whether stapio stays in the background and writes a file.
func (o Options) Daemon() bool { return o.hasOutput }

// WithOutput is the same with another file for -o.
func (o Options) WithOutput(file string) Options {
	o.Start = slices.Clone(o.Start)
	if i := slices.Index(o.Start, "-o"); i >= 0 {
		o.Start[i+1] = file
	}
	o.Output = file
	return o
}

// Line is the form of Compile that a cache records: one line.
func (o Options) Line() string {
	return strings.NewReplacer("\n", " ", "\r", " ").Replace(strings.Join(o.Compile, " "))
}

// Has reports whether a long option is among those for stap.
func (o Options) Has(long string) bool {
	return slices.ContainsFunc(o.Compile, func(w string) bool {
		return w == "--"+long || strings.HasPrefix(w, "--"+long+"=")
	})
}

// Parse divides the words of NAME_OPT.
func Parse(words []string) (Options, error) {
	list, operands, err := getopt.Parse(stapopts.Spec(), words)
	if err != nil {
		return Options{}, fmt.Errorf("Failed to parse parameters. (%w)", err)
	}
	var o Options
	given := map[string]bool{}
	for _, g := range list {
		switch g.Name {
		case "p", "m", "r", "e", "help", "version", "k", "F":
		case "l", "L":
			o.Warnings = append(o.Warnings, fmt.Sprintf("option -%s lists probes and is of no use to a service: dropped", g.Name))
		case "c", "x", "S":
			given[g.Name] = true
			o.Start = append(o.Start, "-"+g.Name, g.Value)
		case "s":
			o.Start = append(o.Start, "-b", g.Value)
		case "o":
			if !o.hasOutput {
				o.Start = append(o.Start, "-o", "")
			}
			o.hasOutput = true
			o = o.WithOutput(g.Value) // the last one counts
		case "client-options", "list-servers", "trust-servers", "language-server", "interactive":
			return Options{}, fmt.Errorf("Failed to parse parameters. (option --%s cannot be used for a service)", g.Name)
		default:
			o.Compile = append(o.Compile, written(g)...)
		}
	}
	o.Compile = append(o.Compile, "--")
	o.Params = operands
	if err := o.mode(given); err != nil {
		return Options{}, err
	}
	return o, nil
}

// staprunSpec are the options of staprun that a service may have.
const staprunSpec = "vwc:x:t:b:o:S:T:N:C:"

// WithStart replaces what staprun gets by the words of STAPRUN_OPTIONS, which are
// staprun's own options and module parameters.
func (o Options) WithStart(words []string) (Options, error) {
	list, operands, err := getopt.Parse(getopt.Short(staprunSpec), words)
	if err != nil {
		return Options{}, fmt.Errorf("Failed to parse parameters. (staprun: %w)", err)
	}
	o.Start, o.Output, o.hasOutput = nil, "", false
	given := map[string]bool{}
	for _, g := range list {
		given[g.Name] = true
		if g.Name == "t" {
			given["x"] = true
		}
		if g.Name == "o" {
			if !o.hasOutput {
				o.Start = append(o.Start, "-o", "")
			}
			o.hasOutput = true
			o = o.WithOutput(g.Value)
			continue
		}
		o.Start = append(o.Start, "-"+g.Name)
		if g.Given {
			o.Start = append(o.Start, g.Value)
		}
	}
	o.Params = operands
	if err := o.mode(given); err != nil {
		return Options{}, err
	}
	return o, nil
}

// mode chooses between -D and -L, and refuses what staprun would.
func (o *Options) mode(given map[string]bool) error {
	switch {
	case o.hasOutput && o.Output == "":
		return errors.New("Failed to parse parameters. (the file of -o is empty)")
	case o.hasOutput && given["c"]:
		return errors.New("Failed to parse parameters. (-o needs the background mode -D of staprun, and You can't specify the '-D' and '-c' options together.)")
	case given["S"] && !o.hasOutput:
		return errors.New("Failed to parse parameters. (You have to specify output FILE with '-S' option.)")
	case given["c"] && given["x"]:
		return errors.New("Failed to parse parameters. (You can't specify the '-c' and '-x' options together.)")
	}
	if o.hasOutput {
		o.Start = append(o.Start, "-D")
	} else {
		o.Start = append(o.Start, "-L")
	}
	return nil
}

// written are the words of one option.
func written(g getopt.Option) []string {
	for _, d := range stapopts.Spec().Defs {
		if d.Name() != g.Name {
			continue
		}
		switch {
		case d.Long != "" && g.Given && d.Arg == getopt.OptionalArg:
			return []string{"--" + d.Long + "=" + g.Value}
		case d.Long != "" && g.Given:
			return []string{"--" + d.Long, g.Value}
		case d.Long != "":
			return []string{"--" + d.Long}
		case g.Given:
			return []string{"-" + g.Name, g.Value}
		}
		break
	}
	return []string{"-" + g.Name}
}

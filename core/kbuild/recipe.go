package kbuild

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stapbox/core/config"
)

// recipe holds the command lines that the kernel's own build system used for a
// small module. File names of the learning run are replaced by the variables
// below; the commands run in the build directory.
type recipe struct {
	Compile   []string // SOURCE -> OBJECT, with kernel headers
	Link      []string // OBJECTS... -> OBJECT, relocatable
	Objtool   []string // on OBJECT, in place; nil if the kernel does without
	Modpost   []string // reads ORDER
	LinkFinal []string // OBJECTS... -> OBJECT, with the module linker script
	ModCommon bool     // the final link takes an object common to all modules
}

// Variables of a recipe.
const (
	varSource  = "@SOURCE@"
	varObject  = "@OBJECT@"
	varObjects = "@OBJECTS@"
	varOrder   = "@ORDER@"
	varSymvers = "@SYMVERS@"
	varName    = "@NAME@"
)

// learned is the module of the learning run: two objects, so that they are
// linked before objtool sees them.
const learned = "learn"

// commands reads the command lines out of a .cmd file of kbuild: the right-hand
// side of its first line, split at ";" and "|" and into words.
func commands(path string) ([][]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	name, command, ok := strings.Cut(line, " := ")
	if !ok || !strings.Contains(name, "cmd_") {
		return nil, fmt.Errorf("%q does not begin with a command", path)
	}
	var list [][]string
	for _, part := range strings.FieldsFunc(command, func(r rune) bool { return r == ';' || r == '|' }) {
		words, err := config.Words([]byte(strings.ReplaceAll(part, "$$", "$")))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", path, err)
		}
		if len(words) > 0 {
			list = append(list, words)
		}
	}
	return list, nil
}

// readRecipe reads what a learning run left in dir.
func readRecipe(dir string) (recipe, error) {
	var r recipe
	object := filepath.Join(dir, "a.o")
	// Until 6.12 make runs in the build directory and names files by absolute
	// paths, later it runs in the module's directory: names has both forms.
	names := func(list []string, by map[string]string) []string {
		both := map[string]string{}
		for from, to := range by {
			both[from] = to
			if at := strings.HasPrefix(from, "@"); at {
				both["@"+strings.TrimPrefix(from[1:], dir+"/")] = to
			}
			both[strings.TrimPrefix(from, dir+"/")] = to
		}
		return replaceWords(list, both)
	}
	list, err := commands(filepath.Join(dir, ".a.o.cmd"))
	if err != nil {
		return r, err
	}
	if len(list) == 0 {
		return r, fmt.Errorf("no compiler command was recorded")
	}
	r.Compile = names(list[0], map[string]string{
		object: varObject, filepath.Join(dir, "a.c"): varSource,
		`-DKBUILD_BASENAME="a"`:              `-DKBUILD_BASENAME="` + varName + `"`,
		`-DKBUILD_MODNAME="` + learned + `"`: `-DKBUILD_MODNAME="` + varName + `"`,
		"-D__KBUILD_MODNAME=kmod_" + learned: "-D__KBUILD_MODNAME=kmod_" + varName,
	})
	// No dependency files, no debug information, no function tracing: a tracer
	// must not run inside a probe.
	r.Compile = slices.DeleteFunc(r.Compile, func(w string) bool {
		return strings.HasPrefix(w, "-Wp,-MMD,") || strings.HasPrefix(w, "-Wp,-MD,") ||
			slices.Contains([]string{"-g", "-pg", "-mrecord-mcount", "-mfentry", "-DCC_USING_FENTRY"}, w)
	})
	// Smaller modules: no compiler's name from every object, and a frame pointer,
	// without which every push and pop has its entry in the ORC tables.
	r.Compile = append(r.Compile, "-fno-ident", "-fno-omit-frame-pointer")
	r.Objtool = objtoolCommand(list[1:], object)

	linked := filepath.Join(dir, learned+".o")
	list, err = commands(filepath.Join(dir, "."+learned+".o.cmd"))
	if err != nil {
		return r, err
	}
	if len(list) == 0 {
		return r, fmt.Errorf("no linker command was recorded")
	}
	r.Link = names(list[0], map[string]string{linked: varObject, "@" + filepath.Join(dir, learned+".mod"): varObjects})
	if o := objtoolCommand(list[1:], linked); o != nil {
		r.Objtool = o
	}

	if err := r.readModpost(dir); err != nil {
		return r, err
	}

	list, err = commands(filepath.Join(dir, "."+learned+".ko.cmd"))
	if err != nil {
		return r, err
	}
	if len(list) == 0 {
		return r, fmt.Errorf("no final linker command was recorded")
	}
	r.LinkFinal = names(list[0], map[string]string{
		filepath.Join(dir, learned+".ko"): varObject, linked: varObjects,
		filepath.Join(dir, learned+".mod.o"): "",
	})
	common := filepath.Join(dir, ".module-common.o")
	if i := slices.IndexFunc(r.LinkFinal, func(w string) bool { return w == common || w == filepath.Base(common) }); i >= 0 {
		r.LinkFinal = slices.Delete(r.LinkFinal, i, i+1)
		r.ModCommon = true
	}
	for what, check := range map[string]struct {
		list []string
		word string
	}{
		"compiler": {r.Compile, varSource}, "linker": {r.Link, varObjects}, "final linker": {r.LinkFinal, varObjects},
	} {
		if !slices.Contains(check.list, check.word) {
			return r, fmt.Errorf("%s command of kbuild is not understood: %q", what, check.list)
		}
	}
	return r, nil
}

// readModpost reads the command of modpost. Since 6.2 it reads the list of
// modules with -T FILE, before from its standard input by -T -.
func (r *recipe) readModpost(dir string) error {
	list, err := commands(filepath.Join(dir, ".Module.symvers.cmd"))
	if err != nil {
		return err
	}
	for _, words := range list {
		if filepath.Base(words[0]) != "modpost" {
			continue
		}
		for i := range words {
			switch {
			case words[i] == filepath.Join(dir, "Module.symvers"), words[i] == "Module.symvers" && i > 0 && words[i-1] == "-o":
				words[i] = varSymvers
			case words[i] == "-oModule.symvers":
				words[i] = "-o" + varSymvers
			case words[i] == filepath.Join(dir, "modules.order"), words[i] == "modules.order", words[i] == "-":
				words[i] = varOrder
			}
		}
		if !strings.Contains(strings.Join(words, " "), varSymvers) {
			// It would write into the installed headers.
			return fmt.Errorf("modpost command of kbuild is not understood: %q", words)
		}
		r.Modpost = words
		return nil
	}
	return fmt.Errorf("no modpost command was recorded")
}

func objtoolCommand(list [][]string, object string) []string {
	for _, words := range list {
		if filepath.Base(words[0]) == "objtool" {
			return replaceWords(words, map[string]string{object: varObject, filepath.Base(object): varObject})
		}
	}
	return nil
}

// relocate makes what lies in the build directory relative to it: the directory
// gets another name when all is prepared, and every command runs there.
func (r *recipe) relocate(build string) {
	for _, command := range [][]string{r.Compile, r.Link, r.Objtool, r.LinkFinal, r.Modpost} {
		for i, w := range command {
			command[i] = strings.ReplaceAll(w, build+"/", "./")
		}
	}
}

// replaceWords replaces whole words; a replacement of "" drops the word.
func replaceWords(words []string, by map[string]string) []string {
	var out []string
	for _, w := range words {
		if r, ok := by[w]; ok {
			w = r
		}
		if w != "" {
			out = append(out, w)
		}
	}
	return out
}

// expand fills the variables of a command; @OBJECTS@ becomes several words.
func expand(command []string, values map[string]string, objects ...string) []string {
	var pairs []string
	for k, v := range values {
		pairs = append(pairs, k, v)
	}
	replacer := strings.NewReplacer(pairs...)
	var out []string
	for _, w := range command {
		if w == varObjects {
			out = append(out, objects...)
			continue
		}
		out = append(out, replacer.Replace(w))
	}
	return out
}

// withoutHeaders is the compiler command for a source that includes only what
// lies in dir: no kernel header is even looked at. Everything else stays, since
// it makes the code fit the kernel.
func withoutHeaders(command []string, dir string) []string {
	var out []string
	skip := false
	for _, w := range command {
		switch {
		case skip:
			skip = false
		case w == "-include":
			skip = true
		case w == "-O2":
			// Large scripts compile in half the time, and objtool takes the code.
			out = append(out, "-O1")
		case strings.HasPrefix(w, "-I"), strings.HasPrefix(w, "-DKBUILD_"), strings.HasPrefix(w, "-D__KBUILD_"), strings.HasPrefix(w, "-W") && !strings.HasPrefix(w, "-Wa,"):
		default:
			out = append(out, w)
		}
	}
	return append(out, "-Wall", "-Wno-unused", "-I"+dir)
}

// archiver is the ar(1) that belongs to the recipe's linker.
func (r recipe) archiver() string { return strings.TrimSuffix(r.Link[0], "ld") + "ar" }

/* ISA is the name of the instruction set that a file is compiled for; exported functions carry it. */

#ifndef AUTOSPARSE_NAMES_H
#define AUTOSPARSE_NAMES_H

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(name) JOIN(JOIN(name, _), ISA)

#endif

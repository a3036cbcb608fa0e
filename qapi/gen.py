#!/usr/bin/env python3
# Makes C tables of commands and events from the schema.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: gen.py OUTPUT_DIR SCHEMA.json...
#
# The schema has QAPI's look: "#" comments, objects with single-quoted strings:
#   { 'enum': NAME, 'data': [ VALUE... ] }
#   { 'struct': NAME, 'data': { MEMBER: TYPE... }, 'gen': false }
#   { 'command': NAME, 'data': { MEMBER: TYPE... } or STRUCT, 'returns': TYPE,
#     'allow-oob': true, 'gen': false }
#   { 'event': NAME, 'data': { MEMBER: TYPE... } }
# A member "*name" is optional, a type ['T'] is a list of T, and 'gen': false lets members
# pass that are not listed.

import json
import os
import re
import sys

BUILTIN = {'any': ('QAPI_ANY', 0), 'str': ('QAPI_STR', 0), 'bool': ('QAPI_BOOL', 0),
           'number': ('QAPI_NUMBER', 0), 'int': ('QAPI_INT', 64), 'size': ('QAPI_UINT', 64)}
for width in (8, 16, 32, 64):
    BUILTIN['int%d' % width] = ('QAPI_INT', width)
    BUILTIN['uint%d' % width] = ('QAPI_UINT', width)

KEYS = {'enum': {'data'}, 'struct': {'data', 'gen'}, 'event': {'data'},
        'command': {'data', 'returns', 'allow-oob', 'gen'}}


class SchemaError(Exception):
    pass


class Parser:
    """A schema file as a list of (line, dict)."""

    TOKEN = re.compile(r"\s+|#[^\n]*|'([^'\n]*)'|(true|false)|([{}\[\]:,])")

    def __init__(self, name, text):
        self.name = name
        self.tokens = []
        pos, line = 0, 1
        while pos < len(text):
            m = self.TOKEN.match(text, pos)
            if not m:
                raise SchemaError('%s:%d: stray %r' % (name, line, text[pos]))
            if m.group(1) is not None:
                self.tokens.append((line, 's', m.group(1)))
            elif m.group(2):
                self.tokens.append((line, 'b', m.group(2) == 'true'))
            elif m.group(3):
                self.tokens.append((line, m.group(3), None))
            line += m.group(0).count('\n')
            pos = m.end()
        self.tokens.append((line, 'end', None))
        self.pos = 0

    def fail(self, what):
        raise SchemaError('%s:%d: %s' % (self.name, self.tokens[self.pos][0], what))

    def take(self, *kinds):
        line, kind, value = self.tokens[self.pos]
        if kind not in kinds:
            self.fail('expected %s, found %s' % (' or '.join(kinds), kind))
        self.pos += 1
        return kind, value

    def sequence(self, close, item):
        if self.tokens[self.pos][1] == close:
            self.pos += 1
            return
        while True:
            item()
            if self.take(',', close)[0] == close:
                return

    def value(self):
        kind, value = self.take('{', '[', 's', 'b')
        if kind in 'sb':
            return value
        if kind == '[':
            out = []
            self.sequence(']', lambda: out.append(self.value()))
            return out
        out = {}

        def member():
            key = self.take('s')[1]
            if key in out:
                self.fail("'%s' given twice" % key)
            self.take(':')
            out[key] = self.value()
        self.sequence('}', member)
        return out

    def all(self):
        out = []
        while self.tokens[self.pos][1] != 'end':
            line = self.tokens[self.pos][0]
            out.append((line, self.value()))
        return out


class Schema:
    def __init__(self):
        self.enums, self.structs, self.commands, self.events = {}, {}, {}, {}

    def add_file(self, path):
        with open(path, encoding='utf-8') as f:
            for line, expr in Parser(path, f.read()).all():
                where = '%s:%d' % (path, line)
                if not isinstance(expr, dict) or not expr:
                    raise SchemaError(where + ': expected an object')
                meta = next(iter(expr))
                if meta not in KEYS:
                    raise SchemaError("%s: unknown kind '%s'" % (where, meta))
                extra = set(expr) - KEYS[meta] - {meta}
                if extra:
                    raise SchemaError("%s: unknown key '%s'" % (where, sorted(extra)[0]))
                table = getattr(self, meta + 's')
                name = expr[meta]
                if name in table or name in BUILTIN:
                    raise SchemaError("%s: '%s' defined twice" % (where, name))
                expr['where'] = where
                table[name] = expr

    def check(self):
        for name, e in self.enums.items():
            if not e.get('data') or not all(isinstance(v, str) for v in e['data']):
                raise SchemaError("%s: enum '%s' needs values" % (e['where'], name))
        for e in list(self.structs.values()) + list(self.events.values()):
            self.check_members(e, e.get('data', {}))
        for e in self.commands.values():
            data = e.get('data', {})
            if isinstance(data, str):
                if data not in self.structs:
                    raise SchemaError("%s: unknown struct '%s'" % (e['where'], data))
            else:
                self.check_members(e, data)
            if 'returns' in e:
                self.check_type(e, e['returns'])

    def check_members(self, e, data):
        if not isinstance(data, dict):
            raise SchemaError("%s: 'data' must be an object" % e['where'])
        for t in data.values():
            self.check_type(e, t)

    def check_type(self, e, t):
        if isinstance(t, list) and len(t) == 1:
            t = t[0]
        if not isinstance(t, str) or not (t in BUILTIN or t in self.enums
                                          or t in self.structs):
            raise SchemaError("%s: unknown type '%s'" % (e['where'], t))


def ident(name):
    return re.sub(r'[^A-Za-z0-9]', '_', name)


def c_type(t):
    return '&qapi_list_' + ident(t[0]) if isinstance(t, list) else '&qapi_type_' + ident(t)


HEAD = '''/* Made by qapi/gen.py: do not edit.
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
'''


def struct_c(out, symbol, name, data, is_open):
    out.append('static const QapiMember %s_members[] = {' % symbol)
    for member, t in data.items():
        optional = member.startswith('*')
        out.append('    {"%s", %s, %s},' % (member.lstrip('*'), c_type(t),
                                            'true' if optional else 'false'))
    out.append('    {NULL, NULL, false}};')
    out.append('static const QapiType %s = {.kind = QAPI_STRUCT, .name = "%s",' %
               (symbol, name))
    out.append('    .members = %s_members, .open = %s};' %
               (symbol, 'true' if is_open else 'false'))


def used_types(schema):
    """Names of the types that commands need, and of those needed as lists."""
    used, lists = set(), set()

    def visit(t):
        if isinstance(t, list):
            lists.add(t[0])
            t = t[0]
        if t in used:
            return
        used.add(t)
        if t in schema.structs:
            for m in schema.structs[t].get('data', {}).values():
                visit(m)
    for e in schema.commands.values():
        data = e.get('data', {})
        for t in ([data] if isinstance(data, str) else data.values()):
            visit(t)
    return used, lists


def commands_c(schema):
    out = [HEAD + '#include "qapi-commands.h"\n#include "qapi/qapi.h"\n']
    used, lists = used_types(schema)
    # Declared first, as types may refer to each other.
    for t in sorted(used):
        out.append('static const QapiType qapi_type_%s;' % ident(t))
    for t in sorted(lists):
        out.append('static const QapiType qapi_list_%s = {.kind = QAPI_LIST, .name = "list",'
                   ' .element = &qapi_type_%s};' % (ident(t), ident(t)))
    for t in sorted(used):
        if t in BUILTIN:
            out.append('static const QapiType qapi_type_%s = {.kind = %s, .name = "%s", '
                       '.bits = %d};' % (ident(t), BUILTIN[t][0], t, BUILTIN[t][1]))
        elif t in schema.enums:
            values = ', '.join('"%s"' % v for v in schema.enums[t]['data'])
            out.append('static const char *const qapi_values_%s[] = {%s, NULL};' %
                       (ident(t), values))
            out.append('static const QapiType qapi_type_%s = {.kind = QAPI_ENUM, '
                       '.name = "%s", .values = qapi_values_%s};' % (ident(t), t, ident(t)))
        else:
            e = schema.structs[t]
            struct_c(out, 'qapi_type_' + ident(t), t, e.get('data', {}),
                     e.get('gen') is False)
    table = []
    for name, e in sorted(schema.commands.items()):
        data = e.get('data', {})
        symbol = 'qapi_args_' + ident(name)
        if isinstance(data, str):
            symbol = 'qapi_type_' + ident(data)
        else:
            struct_c(out, symbol, name, data, e.get('gen') is False)
        table.append('    {"%s", qmp_%s, &%s, %s},' %
                     (name, ident(name), symbol,
                      'true' if e.get('allow-oob') else 'false'))
    out.append('\nconst QmpCommandInfo qapi_commands[] = {')
    out += table
    out.append('    {NULL, NULL, NULL, false}};')
    return '\n'.join(out) + '\n' + introspection_c(schema)


JSON_NAMES = {'any': 'any', 'str': 'str', 'bool': 'bool', 'number': 'number'}


def introspection(schema):
    """What query-qmp-schema says of what is ours: SchemaInfo entries, types by name with
    "colo:" in front, as the emulator's have numbers."""
    out, made = [], set()

    def name_of(t):
        if isinstance(t, list):
            name = '[%s]' % name_of(t[0])
            if name not in made:
                made.add(name)
                out.append({'name': name, 'meta-type': 'array',
                            'element-type': name_of(t[0])})
            return name
        if t in BUILTIN:
            return JSON_NAMES.get(t, 'int')
        name = 'colo:' + t
        if name not in made:
            made.add(name)
            if t in schema.enums:
                values = schema.enums[t]['data']
                out.append({'name': name, 'meta-type': 'enum', 'values': values,
                            'members': [{'name': v} for v in values]})
            else:
                members(name, schema.structs[t].get('data', {}))
        return name

    def members(name, data):
        entry = {'name': name, 'meta-type': 'object', 'members': []}
        out.append(entry)
        for member, t in data.items():
            m = {'name': member.lstrip('*'), 'type': name_of(t)}
            if member.startswith('*'):
                m['default'] = None
            entry['members'].append(m)
        return name

    def arguments(kind, name, data):
        if isinstance(data, str):
            return name_of(data)
        return members('colo:%s-%s' % (name, kind), data)
    for name, e in sorted(schema.commands.items()):
        arg = arguments('arg', name, e.get('data', {}))
        ret = name_of(e['returns']) if 'returns' in e else members('colo:%s-ret' % name, {})
        entry = {'name': name, 'meta-type': 'command', 'arg-type': arg, 'ret-type': ret}
        if e.get('allow-oob'):
            entry['allow-oob'] = True
        out.append(entry)
    for name, e in sorted(schema.events.items()):
        out.append({'name': name, 'meta-type': 'event',
                    'arg-type': arguments('data', name, e.get('data', {}))})
    return out


def introspection_c(schema):
    """As lines of a C string, each below the length that compilers must take."""
    lines = ['[']
    entries = introspection(schema)
    for i, entry in enumerate(entries):
        text = json.dumps(entry) + (',' if i + 1 < len(entries) else ']')
        lines += [text[j:j + 80] for j in range(0, len(text), 80)]
    return '\n/* query-qmp-schema, our part: JSON. */\nconst char qapi_introspection[] =\n' + \
        '\n'.join('    ' + json.dumps(line) for line in lines) + ';\n'


def commands_h(schema):
    out = [HEAD + '#ifndef QAPI_COMMANDS_H\n#define QAPI_COMMANDS_H\n'
           '\n#include "monitor/monitor.h"\n'
           '\n/* Every command of the schema; ends with a NULL name. */\n'
           'extern const QmpCommandInfo qapi_commands[];\n'
           '\n/* Our entries of query-qmp-schema: a JSON list. */\n'
           'extern const char qapi_introspection[];\n']
    for name in sorted(schema.commands):
        out.append('QmpResult qmp_%s(QmpRequest *req, JsonObject *args, JsonNode **ret,\n'
                   '                 GError **errp);' % ident(name))
    out.append('\n/* X(name) a command, for stubs in tests. */\n#define QAPI_COMMANDS(X) \\')
    out.append(' \\\n'.join('    X(%s)' % ident(n) for n in sorted(schema.commands)))
    out.append('\n#endif')
    return '\n'.join(out) + '\n'


def events_h(schema):
    out = [HEAD + '#ifndef QAPI_EVENTS_H\n#define QAPI_EVENTS_H\n'
           '\n/* Names for monitor_event(). */']
    out += ['#define QAPI_EVENT_%s "%s"' % (ident(n).upper(), n)
            for n in sorted(schema.events)]
    out.append('\n#endif')
    return '\n'.join(out) + '\n'


def main(argv):
    if len(argv) < 3:
        print('usage: gen.py OUTPUT_DIR SCHEMA.json...', file=sys.stderr)
        return 2
    schema = Schema()
    try:
        for path in argv[2:]:
            schema.add_file(path)
        schema.check()
    except (SchemaError, OSError) as e:
        print('gen.py: %s' % e, file=sys.stderr)
        return 1
    for name, text in (('qapi-commands.c', commands_c(schema)),
                       ('qapi-commands.h', commands_h(schema)),
                       ('qapi-events.h', events_h(schema))):
        with open(os.path.join(argv[1], name), 'w', encoding='utf-8') as f:
            f.write(text)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv))
